"""BiT-HyperRule: transfer of BiT to any dataset without a search (Kolesnikov et al. 2020, 1912.11370, section 3.3).

    ./bazelw run //tools:prepare_data -- cifar10
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/bit_hyperrule.py
    ./bazelw run //projects/vit:train -- --config=bit_hyperrule:dataset=dtd,classes=47,examples=1880,side=300

The rule: the number of training examples decides the length and whether there is mixup, their size in pixels decides
the resolution, and all else is the same for all.

Arguments: `dataset`, `variant` (50x1, 50x3, 101x1, 101x3, 152x2, 152x4), `data` (S, M: pre-trained on 1.3 or 14 million
images) or `init` (other weights), `tests` (of imagenet2012: val+real+v2). Of a dataset that is not in `DATASETS` also
`classes`, `examples` (to train on) and `side` (the usual height or width in pixels); its splits are `train` and `test`.

Expected (the paper's table 1, BiT-M of 152x4): cifar10 98.91 %, cifar100 92.17 %, imagenet2012 85.39 %, oxford_iiit_pet
94.46 %, oxford_flowers102 99.30 %. 10,000 steps of 50x1 at 128 px cost 4.1e16 FLOPs, a few minutes on a TPU v3-8.
"""

from core import config as config_lib
from core.errors import UserError
from core.evaluators import published_evals

# The dataset: split to test on, classes, examples to train on, height or width in pixels.
DATASETS = {
  "cifar10": ("test", 10, 50_000, 32),
  "cifar100": ("test", 100, 50_000, 32),
  "imagenet2012": ("validation", 1_000, 1_281_167, 400),
  "oxford_iiit_pet": ("test", 37, 3_680, 400),
  "oxford_flowers102": ("test", 102, 1_020, 500),
}


def resolution(side, variant="50x1"):
  """Pixels to which an image of `side` pixels is resized, and those of the random crop."""
  if side < 96:
    return 160, 128
  return (512, 480) if variant == "152x4" else (448, 384)  # The largest model gets a little more.


def length(examples):
  """(steps, warm-up, the parameter of mixup) for a number of training examples."""
  if examples < 20_000:
    return 500, 100, 0.0
  return (10_000 if examples < 500_000 else 20_000), 500, 0.1


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg,
    dataset="cifar10",
    variant="50x1",
    data="M",
    init="",
    classes=0,
    examples=0,
    side=0,
    tests="val+real+v2",
    runlocal=False,
  )
  config = config_lib.ConfigDict()
  test, classes, examples, side = _facts(arg)
  high, low = (48, 32) if arg.runlocal else resolution(side, arg.variant)
  steps, warmup, mixup = length(examples)

  config.seed = 0
  config.total_steps = steps
  config.num_classes = classes
  config.loss = "softmax_xent"

  labels = f"onehot({classes},key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name=arg.dataset, split="train"),
    batch_size=512,
    shuffle_buffer_size=50_000,
    pp=f"decode|resize({high})|random_crop({low})|flip_lr|value_range(-1,1)|{labels}",
  )

  config.model_name = "resnet"
  config.model = dict(variant=arg.variant)
  config.model_init = arg.init or f"BiT-{arg.data}-R{arg.variant}"
  config.model_load = dict(dont_load=["head/.*"])
  config.mixup = dict(p=mixup)

  config.optax_name = "momentum_hp"
  config.lr = 0.003
  config.schedule = dict(
    decay_type="stair", stair_percent=[0.3, 0.6, 0.9], mults=[0.1, 0.01, 0.001], warmup_steps=warmup
  )

  pp = f"decode|resize({low})|value_range(-1,1)"
  options = dict(batch_size=512, log_steps=max(100, steps // 10))
  if arg.dataset == "imagenet2012":
    config.evals = published_evals.imagenet(pp, tests=arg.tests, **options)
  else:
    data = dict(name=arg.dataset, split=test)
    config.evals = dict(test=dict(type="classification", data=data, pp_fn=f"{pp}|{labels}", **options))
  config.log_training_steps = 10
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model = dict(depth=(1, 1), width=0.5)
    del config.model_init
    config.total_steps = 20
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    for each in config.evals.values():
      each.batch_size = 10
  return config


def _facts(arg):
  """What `DATASETS` says of a dataset, or what the arguments say of one that is not there."""
  given = (arg.classes, arg.examples, arg.side)
  if not any(given):
    return config_lib.choose("dataset", arg.dataset, DATASETS)
  if not all(given):
    raise UserError("config arguments classes, examples and side: give all three, for a dataset of your own")
  return ("test", *given)
