"""AugReg's transfer: a ViT of ImageNet-21k fine-tuned on ImageNet-1k (Steiner et al. 2022, 2106.10270, section 3.4).

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real imagenet_v2
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/i21k_to_i1k.py:variant=B/16
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/i21k_to_i1k.py:init=runs/b16/params.npz,lr=0.01

Arguments: `variant` (Ti/16, S/32, S/16, B/32, B/16, B/8, L/16), `init` (weights: the published ones of the variant if
not given, or a run's of i21k.py), `res` (384 or 224 px), `lr` (the paper tries 0.03 and 0.01), `steps`, `tests`
(val+real+v2; `tests=val` needs imagenet2012 alone).

Expected at 384 px, the published checkpoints': Ti/16 78.2 %, S/32 79.6 %, S/16 83.7 %, B/32 83.6 %, B/16 85.5 %,
L/16 85.6 %. 20,000 steps of B/16 at 384 px cost 3.4e18 FLOPs: four and a half hours on a TPU v3-8 at half its peak.
"""

from core import config as config_lib
from core.evaluators import published_evals


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg, variant="B/16", init="", res=384, lr=0.03, steps=20_000, tests="val+real+v2", runlocal=False
  )
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = arg.steps
  config.num_classes = 1_000
  config.loss = "softmax_xent"

  labels = "onehot(1000,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="imagenet2012", split="train[:99%]"),
    batch_size=512,
    shuffle_buffer_size=50_000,
    pp=f"decode_jpeg_and_inception_crop({arg.res})|flip_lr|value_range(-1,1)|{labels}",
  )

  config.model_name = "vit"
  config.model = dict(variant=arg.variant, pool_type="tok")
  config.model_init = arg.init or f"howto-i21k-{arg.variant}"
  # The whole head of the pre-training goes, its hidden layer included (Dosovitskiy et al. 2021, section 3.2).
  # In one regex, since the files of howto-i21k have none, and a regex that matches nothing is refused.
  config.model_load = dict(dont_load=["(head|pre_logits)/.*"])

  config.optax_name = "momentum_hp"
  config.grad_clip_norm = 1.0
  config.lr = arg.lr
  config.schedule = dict(decay_type="cosine", warmup_steps=500)

  pp = f"decode|resize({arg.res})|value_range(-1,1)"
  options = dict(batch_size=512, log_steps=1_000)
  minival = dict(name="imagenet2012", split="train[99%:]")
  config.evals = dict(
    minival=dict(type="classification", data=minival, pp_fn=f"{pp}|{labels}", **options),
    **published_evals.imagenet(pp, tests=arg.tests, **options),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model.variant = "mu/16"
    del config.model_init
    config.total_steps = 20
    config.input.batch_size = 8
    config.input.pp = config.input.pp.replace(f"({arg.res})", "(32)")
    config.schedule.warmup_steps = 2
    for each in config.evals.values():
      each.batch_size = 8
      each.pp_fn = each.pp_fn.replace(f"({arg.res})", "(32)")
  return config
