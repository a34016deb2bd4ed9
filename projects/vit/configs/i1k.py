"""AugReg on ImageNet-1k: "How to train your ViT?" (Steiner et al. 2022, 2106.10270), from scratch at 224 px.

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real imagenet_v2
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/i1k.py:variant=B/16
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/i1k.py:variant=B/32,aug=light1,reg=0.1,wd=0.03

Arguments: `variant` (Ti/16, S/32, S/16, B/32, B/16, L/16), `aug` (none, light1, light2, medium1, medium2, strong1,
strong2), `reg` (0.0 or 0.1: the rate of both dropout and stochastic depth), `wd` (0.03 or 0.1), `tests` (val+real+v2;
`tests=val` needs imagenet2012 alone).

Expected: the paper's Figure 4 gives the accuracy at every level. 300 epochs of B/16 cost 4.0e19 FLOPs: two days on a
TPU v3-8 at half its peak.
"""

from core import config as config_lib
from core.evaluators import published_evals

# Level: RandAugment(layers, magnitude), and the parameter of mixup (the paper's section 3.3).
AUGMENTATION = {
  "none": ("", 0.0),
  "light1": ("randaug(2,0)|", 0.0),
  "light2": ("randaug(2,10)|", 0.2),
  "medium1": ("randaug(2,15)|", 0.2),
  "medium2": ("randaug(2,15)|", 0.5),
  "strong1": ("randaug(2,20)|", 0.5),
  "strong2": ("randaug(2,20)|", 0.8),
}


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="B/16", aug="medium2", reg=0.0, wd=0.1, tests="val+real+v2", runlocal=False)
  randaug, mixup = config_lib.choose("aug", arg.aug, AUGMENTATION)
  res = 32 if arg.runlocal else 224
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 300
  config.num_classes = 1_000
  config.loss = "sigmoid_xent"
  config.init_head_bias = -6.9

  labels = "onehot(1000,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="imagenet2012", split="train[:99%]"),
    batch_size=4_096,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop({res})|flip_lr|{randaug}value_range(-1,1)|{labels}",
  )

  config.model_name = "vit"
  config.model = dict(variant=arg.variant, rep_size=True, pool_type="tok", dropout=arg.reg, stoch_depth=arg.reg)
  config.mixup = dict(p=mixup)

  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = arg.wd * config.lr
  config.schedule = dict(decay_type="cosine", warmup_steps=10_000)

  pp = f"decode|resize_small({res * 8 // 7})|central_crop({res})|value_range(-1,1)"
  options = dict(batch_size=4_096, loss_name=config.loss, log_steps=2_500)

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
