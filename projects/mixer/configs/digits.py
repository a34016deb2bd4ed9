"""A small Mixer on scikit-learn's 8x8 digits: trains in a few minutes on a laptop, with nothing to download.

    ./bazelw run //projects/mixer:train

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

  config.model_name = "mixer"
  config.model = dict(
    patch_size=(2, 2), num_blocks=4, hidden_dim=96, tokens_mlp_dim=64, channels_mlp_dim=384, stoch_depth=0.1
  )
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
    config.model.update(num_blocks=2, hidden_dim=16, tokens_mlp_dim=16, channels_mlp_dim=32)
  return config
