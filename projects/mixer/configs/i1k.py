"""MLP-Mixer on ImageNet-1k from scratch at 224 px (Tolstikhin et al. 2021, 2105.01601).

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real imagenet_v2
    ./bazelw run //projects/mixer:train -- --config=projects/mixer/configs/i1k.py:variant=B/16

Arguments: `variant` (S/32, S/16, B/32, B/16, L/32, L/16), `tests` (val+real+v2; `tests=val` needs imagenet2012 alone).

Expected: the paper's table 3, 76.4 % for B/16 and 71.8 % for L/16, which overfits. 300 epochs of B/16 cost 2.9e19
FLOPs: a day and a half on a TPU v3-8 at half its peak.
"""

from core import config as config_lib
from core.evaluators import published_evals


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="B/16", tests="val+real+v2", runlocal=False)
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
    pp=f"decode_jpeg_and_inception_crop({res})|flip_lr|randaug(2,15)|value_range(-1,1)|{labels}",
  )

  config.model_name = "mixer"
  config.model = dict(variant=arg.variant, stoch_depth=0.1)
  config.mixup = dict(p=0.5)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 0.1 * config.lr
  config.schedule = dict(decay_type="linear", warmup_steps=10_000, linear_end=1e-5)

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
    config.model = dict(patch_size=(32, 32), num_blocks=2, hidden_dim=16, tokens_mlp_dim=16, channels_mlp_dim=16)
    config.model.stoch_depth = 0.1
    config.total_epochs = 1
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    for each in config.evals.values():
      each.batch_size = 8
  return config
