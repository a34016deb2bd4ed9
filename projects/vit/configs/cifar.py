"""ViT on CIFAR-10 or CIFAR-100 at their native 32 px, from scratch or from weights.

    ./bazelw run //tools:prepare_data -- cifar10
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/cifar.py
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/cifar.py:dataset=cifar100,variant=S/4
    ./bazelw run //projects/vit:train -- --config=cifar:variant=small/4,init=runs/fractals/params.npz

Arguments: `dataset`, `variant` (any of ViT's, or that of fractals.py), `init` (weights to start from, their head left).

Expected: 200 epochs of Ti/4 cost 2.0e16 FLOPs: under an hour on a recent GPU, two days on a laptop, which can shorten
the run with `--config.total_epochs=5`. What was measured is in the project's README.
"""

from core import config as config_lib
from projects.vit.configs.fractals import small


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, dataset="cifar10", variant="Ti/4", init="", runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 200
  config.num_classes = config_lib.choose("dataset", arg.dataset, {"cifar10": 10, "cifar100": 100})
  config.loss = "softmax_xent"

  labels = f"onehot({config.num_classes},key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name=arg.dataset, split="train[:98%]"),
    batch_size=512,
    shuffle_buffer_size=50_000,
    pp=f"decode|pad(4)|random_crop(32)|flip_lr|randaug(2,10)|value_range(-1,1)|{labels}",
  )

  config.model_name = "vit"
  config.model = dict(pool_type="gap", posemb="sincos2d", **small(arg.variant))
  config.mixup = dict(p=0.2)
  if arg.init:
    config.model_init = arg.init
    config.model_load = dict(dont_load=["head/.*"])

  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.05)

  def evaluate(split):
    return dict(
      type="classification",
      data=dict(name=arg.dataset, split=split),
      pp_fn=f"decode|value_range(-1,1)|{labels}",
      batch_size=500,
      log_epochs=5,
    )

  config.evals = dict(val=evaluate("train[98%:]"), test=evaluate("test"))
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model = dict(variant="mu/8", pool_type="gap", posemb="sincos2d")
    config.input.batch_size = 16
    config.total_epochs = 1
    for each in config.evals.values():
      each.batch_size = 16
  return config
