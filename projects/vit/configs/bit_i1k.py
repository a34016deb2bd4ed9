"""BiT-S, a ResNet with GroupNorm and weight standardization on ImageNet-1k (Kolesnikov et al. 2020, 1912.11370).

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real imagenet_v2
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/bit_i1k.py
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/bit_i1k.py:model=resnet,variant=101x3

Arguments: `model` (bit: ReLU after each sum, as in the first ResNets; resnet: before each convolution, as in the paper
and its weights), `variant` (depth x width: 50x1, 101x1, 152x2, ...), `tests` (val+real+v2; `tests=val` needs
imagenet2012 alone).

Expected: the paper reports accuracies after transfer alone, by bit_hyperrule.py. 90 epochs of 50x1 cost 2.8e18 FLOPs:
four hours on a TPU v3-8 at half its peak.
"""

from core import config as config_lib
from core.evaluators import published_evals


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, model="bit", variant="50x1", tests="val+real+v2", runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 90
  config.num_classes = 1_000
  config.loss = "softmax_xent"

  labels = "onehot(1000,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="imagenet2012", split="train[:99%]"),
    batch_size=4_096,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop(224)|flip_lr|value_range(-1,1)|{labels}",
  )

  config.model_name = config_lib.choose("model", arg.model, {"bit": "bit", "resnet": "resnet"})
  config.model = dict(variant=arg.variant)

  config.optax_name = "momentum_hp"
  config.grad_clip_norm = 1.0
  config.lr = 0.03 * config.input.batch_size / 256
  # The paper's decay of 1e-4 is part of the gradient, so that momentum of 0.9 makes ten times as much of it.
  config.wd = 1e-3 * config.lr
  config.schedule = dict(decay_type="stair", stair_epochs=[30, 60, 80], mults=[0.1, 0.01, 0.001], warmup_steps=5_000)

  pp = "decode|resize_small(256)|central_crop(224)|value_range(-1,1)"
  options = dict(batch_size=4_096, log_steps=1_000)

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
    config.model = dict(depth=(1, 1), width=0.5)
    config.total_epochs = 1
    config.input.batch_size = 8
    config.input.pp = config.input.pp.replace("(224)", "(32)")
    config.schedule = dict(decay_type="stair", stair_percent=[0.5], mults=[0.1], warmup_steps=2)
    for each in config.evals.values():
      each.batch_size = 8
      each.pp_fn = each.pp_fn.replace("(256)", "(40)").replace("(224)", "(32)")
  return config
