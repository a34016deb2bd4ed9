"""A small ViT pre-trained on images of fractals, which are made from a formula (after Kataoka et al. 2020).

    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/fractals.py --workdir=runs/fractals
    ./bazelw run //projects/vit:train -- --config=cifar:variant=small/4,init=runs/fractals/params.npz

The second command fine-tunes on CIFAR-10 what the first has learned; without `init` it trains from scratch.

Arguments: `variant` (small/4, small/8: the ViT of `small`, by its patch size; or any other, Ti/4), `classes` and
`per_class`, the number of fractals and of images of each.

Expected: "Pre-training without Natural Images" (2101.08515) has 93.4 % on CIFAR-10 for a ResNet-50 pre-trained on 1,000
fractals and 87.6 % from scratch. 20 epochs of small/4 cost 3e14 FLOPs: two hours on a laptop, which can shorten the run
with `--config.total_epochs=2`. What was measured is in the project's README.
"""

from core import config as config_lib


def small(variant):
  """The options of ViT for `small/PATCH`, a tenth of Ti for runs of minutes; of any other variant its name."""
  name, _, patch = variant.partition("/")
  if name != "small":
    return dict(variant=variant)
  return dict(width=128, depth=4, mlp_dim=512, num_heads=4, patch_size=(int(patch or 4),) * 2)


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="small/4", classes=100, per_class=500, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 20
  config.num_classes = arg.classes
  config.loss = "softmax_xent"

  def data(split):
    return dict(source="fractals", split=split, classes=arg.classes, per_class=arg.per_class, size=32, seed=0)

  labels = f"value_range(-1,1)|onehot({arg.classes},key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(data=data("train"), batch_size=128, pp=f"pad(4)|random_crop(32)|flip_lr|{labels}")

  config.model_name = "vit"
  config.model = dict(pool_type="gap", posemb="sincos2d", **small(arg.variant))
  config.mixup = dict(p=0.0)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.05)

  config.evals = dict(
    test=dict(type="classification", data=data("test"), pp_fn=labels, batch_size=500, log_epochs=2),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model = dict(variant="mu/8", pool_type="gap", posemb="sincos2d")
    config.input.batch_size = 16
    config.total_epochs = 1
    for each in (config.input.data, config.evals.test.data):
      each.per_class = 2
    config.evals.test.batch_size = 50
  return config
