"""The teacher of `digits`: a small ViT that classifies scikit-learn's 8x8 digits.

    ./bazelw run //projects/distill:train -- --config=digits_teacher --workdir=runs/teacher
    cp runs/teacher/params.npz projects/distill/teachers/digits.npz
    ./bazelw run //projects/distill:train -- --config=digits:teacher=runs/teacher/params.npz

The first two lines made the file that the project ships.
"""

from core import config as config_lib

TEACHER = dict(width=64, depth=3, mlp_dim=256, num_heads=4, patch_size=(2, 2), pool_type="gap")


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 2 if arg.runlocal else 250
  config.num_classes = 10
  config.loss = "softmax_xent"

  labels = "value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="digits", split="train"),
    batch_size=64,
    pp=f"pad(1)|random_crop(8)|{labels}",
  )

  config.model_name = "vit"
  config.model = dict(TEACHER, **(dict(width=16, depth=1, mlp_dim=32, num_heads=2) if arg.runlocal else {}))
  config.mixup = dict(p=0.2)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 3e-3
  config.wd = 2e-3
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)

  data = dict(name="digits", split="test")
  config.evals = dict(test=dict(type="classification", data=data, pp_fn=labels, batch_size=360, log_percent=0.1))
  config.log_training_steps = 50
  config.ckpt_steps = 1_000
  return config
