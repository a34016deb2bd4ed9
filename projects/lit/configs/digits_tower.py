"""The image tower that `digits` locks: a small ViT, a classifier of pictures of one or two digits.

    ./bazelw run //projects/lit:train -- --config=digits_tower --workdir=runs/tower
    cp runs/tower/params.npz projects/lit/towers/digits.npz
    ./bazelw run //projects/lit:train -- --config=digits:tower=runs/tower/params.npz

The first two lines made the file that the project ships. The labels tell which digits there are and, of two, which
comes first; of colours and places they say nothing, so what a text tower can read of those is what happened to stay.
"""

from core import config as config_lib
from core.data.sources import digit_captions


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, runlocal=False)
  config = config_lib.ConfigDict()
  classes = len(digit_captions.CLASS_NAMES)

  config.seed = 0
  config.total_epochs = 1 if arg.runlocal else 80
  config.num_classes = classes
  config.loss = "softmax_xent"

  pp = f"value_range(-1,1)|onehot({classes},key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(source="digit_captions", name="digit_captions", split="train"),
    batch_size=128,
    pp=f"pad(1)|random_crop(16)|{pp}",
  )

  config.model_name = "vit"
  config.model = dict(width=48, depth=2, mlp_dim=192, num_heads=4, patch_size=(4, 4), pool_type="gap")

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 3e-3
  config.wd = 1e-3
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)

  def test(digits):
    data = dict(source="digit_captions", split="test", digits=digits)
    return dict(type="classification", data=data, pp_fn=pp, batch_size=240, log_percent=0.25)

  config.evals = dict(test=test(1), pairs=test(2))
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model.update(width=16, depth=1, mlp_dim=32, num_heads=2)
  return config
