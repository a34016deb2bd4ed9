"""A small ViT on CIFAR-10 at its native 32 px from scratch, with GSAM or without.

    ./bazelw run //tools:prepare_data -- cifar10
    ./bazelw run //projects/gsam:train -- --config=cifar
    ./bazelw run //projects/gsam:train -- --config=cifar:plain

Arguments: `plain` (the same run without GSAM), `variant` (any of ViT's; the default is smaller than all of them).

What short runs reach is in the project's README.
"""

from core import config as config_lib


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, plain=False, variant="", runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 200
  config.num_classes = 10
  config.loss = "softmax_xent"

  labels = "value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="cifar10", split="train[:98%]"),
    batch_size=128,
    shuffle_buffer_size=50_000,
    pp=f"decode|pad(4)|random_crop(32)|flip_lr|{labels}",
  )

  size = (
    dict(variant=arg.variant) if arg.variant else dict(width=96, depth=3, mlp_dim=384, num_heads=4, patch_size=(8, 8))
  )
  config.model_name = "vit"
  config.model = dict(pool_type="gap", posemb="sincos2d", **size)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)
  if not arg.plain:
    config.sam = dict(rho_max=0.05, rho_min=0.01, alpha=0.1)

  config.evals = dict(
    test=dict(
      type="classification",
      data=dict(name="cifar10", split="test"),
      pp_fn=f"decode|{labels}",
      batch_size=500,
      log_epochs=5,
    ),
    sharpness=dict(
      type="sharpness", data=dict(name="cifar10", split="train[:512]"), pp_fn=f"decode|{labels}", batch_size=256
    ),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model = dict(variant="mu/8", pool_type="gap", posemb="sincos2d")
    config.input.batch_size = 16
    config.total_epochs = 1
    config.evals.sharpness.max_iterations = 2
    config.evals.sharpness.data.split = "train[:32]"
    for each in config.evals.values():
      each.batch_size = 16
  return config
