"""FlexiViT on ImageNet-1k at 240 px, distilled from DeiT III (Beyer et al. 2023, 2212.08013, section 3.5).

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real imagenet_v2
    ./bazelw run //projects/flexivit:train -- --config=i1k_deit3_distill
    ./bazelw run //projects/flexivit:train -- --config=i1k_deit3_distill:variant=L,epochs=1200

Arguments: `variant` (S, B, L), `epochs` (90, 300, 600, 1200), `tests` (val+real+v2; `tests=val` needs imagenet2012
alone).

The teacher is the DeiT III of the same size for 384 px, fixed, and the student begins with its weights. Both embeddings
are kept at the teacher's sizes, 16 px and 24x24 positions, where the student so begins as its teacher. Both see the
same crop, the teacher at its own resolution.

Expected: 82.5 %, 84.7 %, 85.6 % for S, B, L at 16 px patches after 1,200 epochs, as reported for the published weights
by timm. Not run here; batch size, rates and mixup are from knowledge of the paper.
"""

from core import config as config_lib
from core.evaluators import published_evals
from projects.flexivit import sizes


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="B", epochs=90, tests="val+real+v2", runlocal=False)
  config_lib.choose("variant", arg.variant, dict.fromkeys("SBL"))
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 1_000

  res, teacher_res = (32, 32) if arg.runlocal else (240, 384)
  config.input = dict(
    data=dict(name="imagenet2012", split="train[:99%]"),
    batch_size=1_024,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop({teacher_res})|flip_lr|vgg_value_range|copy('image','prof')|resize({res})"
    "|keep('image','prof')",
  )

  init = f"deit3_{arg.variant}_384_1k"
  config.teachers = ["prof"]
  config.prof_name = "vit"
  config.prof = dict(variant=f"{arg.variant}/16", pool_type="tok", gelu="exact")
  config.prof_init = init
  config.student_name = "flexi_vit"
  config.student = dict(config.prof, variant=arg.variant, patch_size=(16, 16), posemb_size=(24, 24))
  config.student_init = init
  config.distance = "kl"
  config.distance_kw = dict(t=1.0)
  config.mixup = dict(p=1.0)
  config.flexi = sizes.flexi(runlocal=arg.runlocal)

  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.grad_clip_norm = 1.0
  config.lr = 1e-4
  config.wd = 1e-5
  config.schedule = dict(decay_type="cosine", warmup_steps=5_000)

  pp = f"decode|resize_small({res * 16 // 15})|central_crop({res})|vgg_value_range"
  labels = "onehot(1000,key='label',key_result='labels')|keep('image','labels')"
  minival = dict(data=dict(name="imagenet2012", split="train[99%:]"), pp_fn=f"{pp}|{labels}", batch_size=1_024)
  config.evals = dict(
    minival=dict(type="classification", log_steps=2_500, **minival),
    **published_evals.imagenet(pp, tests=arg.tests, batch_size=1_024, log_steps=10_000),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.total_epochs = 1
    config.prof.variant = "mu/16"
    config.student.update(variant="mu", posemb_size=(2, 2))
    config.prof_init = None
    del config.student_init
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    config.evals = dict(minival=dict(config.evals.minival, batch_size=8))
  for each in config.evals.values():
    each.pred = sizes.predictions(config.flexi, "student")
  return config
