"""MLP-Mixer on ImageNet-21k at 224 px, the pre-training (Tolstikhin et al. 2021, 2105.01601).

    ./bazelw run //projects/mixer:train -- --config=projects/mixer/configs/i21k.py:variant=B/16
    ./bazelw run //projects/mixer:train -- --config=projects/mixer/configs/i21k.py:variant=L/16

Arguments: `variant` (B/16, L/16; the smaller ones are regularized like B), `fewshot` (what is evaluated besides, joined
by +: imagenet, caltech, cars, cifar100, dtd, pets, uc_merced, or all, or none). The dataset is a TFDS builder
`imagenet21k` with the one split `full` and 21,843 classes.

Expected: the paper's table 3, after transfer to ImageNet-1k at 224 px: 80.6 % for B/16, 82.9 % for L/16. 300 epochs of
B/16 cost 3.2e20 FLOPs: two and a half weeks on a TPU v3-8 at half its peak, 13 hours on 256 cores.
"""

from core import config as config_lib
from core.evaluators import published_evals


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="B/16", fewshot="all", runlocal=False)
  # RandAugment's magnitude and the parameter of mixup (the paper's table 4).
  randaug, mixup = (20, 0.5) if arg.variant.startswith(("L", "H")) else (10, 0.2)
  res = 32 if arg.runlocal else 224
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 300
  config.num_classes = 21_843
  config.loss = "sigmoid_xent"
  config.init_head_bias = -10.0

  labels = "onehot(21843,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="imagenet21k", split="full[51200:]"),
    batch_size=4_096,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop({res})|flip_lr|randaug(2,{randaug})|value_range(-1,1)|{labels}",
  )

  config.model_name = "mixer"
  config.model = dict(variant=arg.variant, stoch_depth=0.1)
  config.mixup = dict(p=mixup)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 0.1 * config.lr
  config.schedule = dict(decay_type="linear", warmup_steps=10_000, linear_end=1e-5)

  config.evals = dict(
    val=dict(
      type="classification",
      data=dict(name="imagenet21k", split="full[:51200]"),
      pp_fn=f"decode|resize_small({res * 8 // 7})|central_crop({res})|value_range(-1,1)|{labels}",
      batch_size=4_096,
      loss_name=config.loss,
      log_steps=5_000,
    ),
    **published_evals.fewshot(arg.fewshot, batch_size=4_096, log_steps=25_000),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model = dict(patch_size=(32, 32), num_blocks=2, hidden_dim=16, tokens_mlp_dim=16, channels_mlp_dim=16)
    config.model.stoch_depth = 0.1
    config.total_epochs = 1
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    config.evals = dict(
      val=config.evals.val, **published_evals.fewshot("pets", resize=36, crop=32, shots=1, log_steps=10)
    )
    for each in config.evals.values():
      each.batch_size = 8
    config.input.data.split = "full[50%:]"
    config.evals.val.data.split = "full[:50%]"
  return config
