"""Better plain ViT baselines for ImageNet-1k: S/16 without any of the later inventions (Beyer et al. 2022, 2205.01580).

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real imagenet_v2
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/s16_i1k.py
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/s16_i1k.py --config.total_epochs=300

Arguments: `tests` (val+real+v2; `tests=val` needs imagenet2012 alone).

Expected (the paper's, on a TPU v3-8): 90 epochs 76.5 % in 6 h 30, 150 epochs 78.5 %, 300 epochs 80.0 % in under a day.
"""

from core import config as config_lib
from core.evaluators import published_evals


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, tests="val+real+v2", runlocal=False)
  res = 32 if arg.runlocal else 224
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 90
  config.num_classes = 1_000
  config.loss = "softmax_xent"

  labels = "onehot(1000,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="imagenet2012", split="train[:99%]"),
    batch_size=1_024,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop({res})|flip_lr|randaug(2,10)|value_range(-1,1)|{labels}",
  )

  config.model_name = "vit"
  config.model = dict(variant="S/16", rep_size=True, pool_type="gap", posemb="sincos2d")
  config.mixup = dict(p=0.2)

  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_steps=10_000)

  pp = f"decode|resize_small({res * 8 // 7})|central_crop({res})|value_range(-1,1)"
  options = dict(batch_size=1_024, log_steps=2_500)

  def evaluate(split):
    return dict(type="classification", data=dict(name="imagenet2012", split=split), pp_fn=f"{pp}|{labels}", **options)

  config.evals = dict(
    train=evaluate("train[:2%]"),
    minival=evaluate("train[99%:]"),
    **published_evals.imagenet(pp, tests=arg.tests, **options),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model.variant = "mu/16"
    config.total_epochs = 1
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    for each in config.evals.values():
      each.batch_size = 8
  return config
