"""FlexiViT on ImageNet-21k at 240 px, from labels (Beyer et al. 2023, 2212.08013, section 3.3).

    ./bazelw run //projects/flexivit:train -- --config=i21k_sup
    ./bazelw run //projects/flexivit:train -- --config=i21k_sup:fixed=16

Arguments: `variant` (B), `fixed` (a plain ViT of that patch size in pixels instead: 8 to 48 that divide 240), `fewshot`
(what is evaluated besides, joined by +: imagenet, caltech, cars, cifar100, dtd, pets, uc_merced, or all, or none). The
dataset is a TFDS builder `imagenet21k` with the one split `full` and 21,843 classes.

Expected: at 16 and at 30 px as good as the ViT-B trained for that patch size alone, as the paper reports. Not run here;
batch size, rates and augmentation are from knowledge of the paper.
"""

from core import config as config_lib
from core.evaluators import published_evals
from projects.flexivit import sizes


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="B", fixed=0, fewshot="all", runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 90
  config.num_classes = 21_843
  config.loss = "sigmoid_xent"
  config.init_head_bias = -10.0

  res = 32 if arg.runlocal else 240
  labels = "onehot(21843,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="imagenet21k", split="full[51200:]"),
    batch_size=4_096,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop({res})|flip_lr|randaug(2,10)|value_range(-1,1)|{labels}",
  )

  config.model = dict(variant=arg.variant, pool_type="gap", posemb="learn")
  config.mixup = dict(p=0.2)
  if arg.fixed:
    sizes.check_fixed(arg.fixed)
    config.model_name = "vit"
    config.model.patch_size = (arg.fixed, arg.fixed)
  else:
    config.model_name = "flexi_vit"
    config.model.update(patch_size=(32, 32), posemb_size=(7, 7))
    config.flexi = sizes.flexi(runlocal=arg.runlocal)

  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_steps=10_000)

  config.evals = dict(
    val=dict(
      type="classification",
      data=dict(name="imagenet21k", split="full[:51200]"),
      pp_fn=f"decode|resize_small({res * 16 // 15})|central_crop({res})|value_range(-1,1)|{labels}",
      batch_size=4_096,
      loss_name=config.loss,
      log_steps=5_000,
    ),
    **published_evals.fewshot(arg.fewshot, crop=240, batch_size=4_096, log_steps=25_000),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model.variant = "mu"
    config.total_epochs = 1
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    config.input.data.split = "full[50%:]"
    config.evals = dict(val=config.evals.val)
    config.evals.val.update(batch_size=8)
    config.evals.val.data.split = "full[:50%]"
    if arg.fixed:
      config.model.patch_size = (16, 16)
  if not arg.fixed:
    for each in config.evals.values():
      each.pred = sizes.predictions(config.flexi, "predict")
  return config
