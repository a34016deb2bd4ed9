"""A small FlexiViT on scikit-learn's digits, enlarged to 24x24 px: five patch sizes, one set of weights.

    ./bazelw run //projects/flexivit:train
    ./bazelw run //projects/flexivit:train -- --config=digits:fixed=4

Arguments: `fixed` (a plain ViT of that patch size in pixels instead, trained as long: 3, 4, 6, 8 or 12).

Expected: at least 95 % test accuracy at every size, in under four minutes on 2 CPU cores. What was measured is in the
project's README.
"""

from core import config as config_lib
from projects.flexivit import sizes

IMAGE = 24
# Patch sizes of 12, 8, 6, 4 and 3 px.
SIZES = (2, 3, 4, 6, 8)


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, fixed=0, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 2 if arg.runlocal else 150
  config.num_classes = 10
  config.loss = "softmax_xent"

  labels = "onehot(10,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="digits", split="train"),
    batch_size=64,
    pp=f"pad(1)|random_crop(8)|resize({IMAGE})|value_range(-1,1)|{labels}",
  )

  shown = (2, 4) if arg.runlocal else SIZES
  size = dict(width=64, depth=3, mlp_dim=256, num_heads=4)
  if arg.runlocal:
    size = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
  config.model = dict(pool_type="gap", posemb="learn", **size)
  if arg.fixed:
    sizes.check_fixed(arg.fixed, IMAGE, SIZES)
    config.model_name = "vit"
    config.model.patch_size = (arg.fixed, arg.fixed)
  else:
    config.model_name = "flexi_vit"
    config.model.update(patch_size=(12, 12), posemb_size=(7, 7))
    # Few tokens are hard to learn from, and cheap: more often.
    config.flexi = dict(seqhw=dict(v=shown, p=(3, 2, 2, 2, 1)[: len(shown)]))
  config.mixup = dict(p=0.2)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 3e-3
  config.wd = 2e-3
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)

  config.evals = dict(
    test=dict(
      type="classification",
      data=dict(name="digits", split="test"),
      pp_fn=f"resize({IMAGE})|value_range(-1,1)|{labels}",
      batch_size=128,
      log_epochs=10,
    )
  )
  if not arg.fixed:
    config.evals.test.pred = sizes.predictions(config.flexi, "predict")
  config.log_training_steps = 50
  config.ckpt_steps = 500
  return config
