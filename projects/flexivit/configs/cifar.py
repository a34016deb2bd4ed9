"""FlexiViT on CIFAR-10 or CIFAR-100 at their native 32 px: patches of 16, 8 and 4 px, one set of weights.

    ./bazelw run //tools:prepare_data -- cifar10
    ./bazelw run //projects/flexivit:train -- --config=cifar
    ./bazelw run //projects/flexivit:train -- --config=cifar:fixed=4

Arguments: `dataset`, `fixed` (a plain ViT of that patch size in pixels instead: 4, 8 or 16).

Expected: 200 epochs are a day on a laptop, which can shorten the run with `--config.total_steps=600`. What was measured
is in the project's README.
"""

from core import config as config_lib
from projects.flexivit import sizes

SIZES = (2, 4, 8)


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, dataset="cifar10", fixed=0, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 1 if arg.runlocal else 200
  config.num_classes = config_lib.choose("dataset", arg.dataset, {"cifar10": 10, "cifar100": 100})
  config.loss = "softmax_xent"

  labels = f"onehot({config.num_classes},key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name=arg.dataset, split="train[:98%]"),
    batch_size=16 if arg.runlocal else 128,
    shuffle_buffer_size=50_000,
    pp=f"decode|pad(4)|random_crop(32)|flip_lr|value_range(-1,1)|{labels}",
  )

  config.model = dict(
    width=48 if arg.runlocal else 192, depth=1 if arg.runlocal else 4, num_heads=3, pool_type="gap", posemb="learn"
  )
  if arg.fixed:
    sizes.check_fixed(arg.fixed, 32, SIZES)
    config.model_name = "vit"
    config.model.patch_size = (arg.fixed, arg.fixed)
  else:
    config.model_name = "flexi_vit"
    config.model.update(patch_size=(16, 16), posemb_size=(7, 7))
    config.flexi = dict(seqhw=dict(v=SIZES, p=(1, 1, 1)))

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
      batch_size=16 if arg.runlocal else 500,
      log_epochs=5,
    )

  config.evals = dict(val=evaluate("train[98%:]"), test=evaluate("test"))
  if not arg.fixed:
    for each in config.evals.values():
      each.pred = sizes.predictions(config.flexi, "predict")
  config.log_training_steps = 50
  config.ckpt_steps = 1_000
  return config
