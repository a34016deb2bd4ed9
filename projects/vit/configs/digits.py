"""A small ViT on scikit-learn's 8x8 digits: trains in a minute or two on a laptop, with nothing to download.

    ./bazelw run //projects/vit:train

Expected: at least 97 % test accuracy.
"""

from core import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 2 if arg.runlocal else 120
  config.num_classes = 10
  config.loss = "softmax_xent"

  config.input = dict(
    data=dict(name="digits", split="train"),
    batch_size=64,
    pp="pad(1)|random_crop(8)|value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')",
  )

  config.model_name = "vit"
  config.model = dict(width=96, depth=3, mlp_dim=384, num_heads=4, patch_size=(2, 2), pool_type="gap", posemb="learn")
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
      pp_fn="value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')",
      batch_size=128,
      log_epochs=10,
    )
  )
  config.log_training_steps = 50
  config.ckpt_steps = 500

  if arg.runlocal:
    config.model.update(width=16, depth=1, mlp_dim=32, num_heads=2)
  return config
