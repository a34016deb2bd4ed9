"""A small ViT on scikit-learn's 8x8 digits with GSAM: trains in a few minutes on a laptop, with nothing to download.

    ./bazelw run //projects/gsam:train
    ./bazelw run //projects/gsam:train -- --config=digits:plain

Arguments: `plain` (the same run without GSAM, to compare the evaluation `sharpness` with).

What the two reach is in the project's README.
"""

from core import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, plain=False, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 2 if arg.runlocal else 100
  config.num_classes = 10
  config.loss = "softmax_xent"

  labels = "value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(data=dict(name="digits", split="train"), batch_size=64, pp=f"pad(1)|random_crop(8)|{labels}")

  config.model_name = "vit"
  config.model = dict(width=96, depth=3, mlp_dim=384, num_heads=4, patch_size=(2, 2), pool_type="gap", posemb="learn")

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 3e-3
  config.wd = 2e-3
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)
  if not arg.plain:
    config.sam = dict(rho_max=0.1, rho_min=0.02, alpha=0.1)

  config.evals = dict(
    test=dict(
      type="classification", data=dict(name="digits", split="test"), pp_fn=labels, batch_size=128, log_epochs=50
    ),
    # At the end only: it takes many passes over its examples.
    sharpness=dict(
      type="sharpness", data=dict(name="digits", split="train[:512]"), pp_fn=labels, batch_size=256, rho=0.05
    ),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 500

  if arg.runlocal:
    config.model.update(width=16, depth=1, mlp_dim=32, num_heads=2)
    config.evals.sharpness.max_iterations = 2
  return config
