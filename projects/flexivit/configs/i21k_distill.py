"""FlexiViT on ImageNet-21k at 240 px, distilled from ViT-B/8 (Beyer et al. 2023, 2212.08013, section 3.5).

    ./bazelw run //projects/flexivit:train -- --config=i21k_distill
    ./bazelw run //projects/flexivit:train -- --config=i21k_distill:epochs=1000

Arguments: `epochs` (90, 300, 1000), `init` (the weights of teacher and student: a name, file or URL), `fewshot` (what
is evaluated besides, as in i21k_sup.py). The dataset is a TFDS builder `imagenet21k` with the one split `full` and
21,843 classes.

The teacher is AugReg's ViT-B/8, fixed, and the student begins with its weights. Both embeddings are kept at the
teacher's sizes, 8 px and 28x28 positions, where the student so begins as its teacher; every other size has it resized
by the pseudo-inverse. Kept at 32 px the patch embedding, enlarged first, would come back at 8 px as another one.

Expected: better than i21k_sup.py at every size after as many epochs, as the paper reports. Not run here; batch size,
rates and augmentation are from knowledge of the paper.
"""

from core import config as config_lib
from core.evaluators import published_evals
from projects.flexivit import sizes


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, epochs=90, init="howto-i21k-B/8", fewshot="all", runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = arg.epochs
  config.num_classes = 21_843

  # 240 px are 30 patches of 8 px: both models take the same images, and the teacher's positions are resized once, as it
  # is loaded.
  res = 32 if arg.runlocal else 240
  labels = "onehot(21843,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="imagenet21k", split="full[51200:]"),
    batch_size=4_096,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop({res})|flip_lr|randaug(2,15)|value_range(-1,1)|keep('image')",
  )

  config.teachers = ["prof"]
  config.prof_name = "vit"
  config.prof = dict(variant="B/8", pool_type="tok", rep_size=True)
  config.prof_init = arg.init
  config.student_name = "flexi_vit"
  config.student = dict(config.prof, variant="B", patch_size=(8, 8), posemb_size=(28, 28))
  config.student_init = arg.init
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

  config.evals = dict(
    val=dict(
      type="classification",
      data=dict(name="imagenet21k", split="full[:51200]"),
      pp_fn=f"decode|resize_small({res * 16 // 15})|central_crop({res})|value_range(-1,1)|{labels}",
      batch_size=4_096,
      loss_name="sigmoid_xent",
      log_steps=5_000,
    ),
    **published_evals.fewshot(arg.fewshot, crop=240, batch_size=4_096, log_steps=25_000),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.total_epochs = 1
    config.prof.variant = "mu/16"
    config.student.update(variant="mu", patch_size=(16, 16), posemb_size=(2, 2))
    config.prof_init = None
    del config.student_init
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    config.input.data.split = "full[50%:]"
    config.evals = dict(val=dict(config.evals.val, batch_size=8))
    config.evals.val.data.split = "full[:50%]"
  for each in config.evals.values():
    each.pred = sizes.predictions(config.flexi, "student")
  return config
