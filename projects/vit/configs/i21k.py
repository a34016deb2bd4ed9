"""AugReg on ImageNet-21k: "How to train your ViT?" (Steiner et al. 2022, 2106.10270), the pre-training at 224 px.

    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/i21k.py:variant=B/16
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/i21k.py:variant=S/16,aug=light1,wd=0.03

Arguments: `variant`, `aug`, `reg`, `wd` as in i1k.py, without `aug` and `wd` the levels of the variant's published
checkpoint, the best of the paper's sweep after transfer; `fewshot` (what is evaluated besides, joined by +: imagenet,
caltech, cars, cifar100, dtd, pets, uc_merced, or all, or none). The dataset is a TFDS builder `imagenet21k` with the
one split `full` and 21,843 classes.

Expected: the paper's Table 3, after transfer. 300 epochs of B/16 cost 4.5e20 FLOPs: three weeks on a TPU v3-8 at half
its peak, 16 hours on 256 cores.
"""

from core import config as config_lib
from core.evaluators import published_evals
from projects.vit.configs.i1k import AUGMENTATION

# Variant: (augmentation, weight decay) of the published checkpoints.
BEST = {
  "Ti/16": ("none", 0.03),
  "S/32": ("none", 0.1),
  "S/16": ("light1", 0.03),
  "B/32": ("light1", 0.1),
  "B/16": ("medium1", 0.1),
  "B/8": ("medium2", 0.1),
  "L/16": ("strong1", 0.1),
}


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="B/16", aug="", reg=0.0, wd=0.0, fewshot="all", runlocal=False)
  aug, wd = BEST.get(arg.variant, ("light1", 0.1))
  randaug, mixup = config_lib.choose("aug", arg.aug or aug, AUGMENTATION)
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
    pp=f"decode_jpeg_and_inception_crop({res})|flip_lr|{randaug}value_range(-1,1)|{labels}",
  )

  config.model_name = "vit"
  config.model = dict(variant=arg.variant, rep_size=True, pool_type="tok", dropout=arg.reg, stoch_depth=arg.reg)
  config.mixup = dict(p=mixup)

  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = (arg.wd or wd) * config.lr
  config.schedule = dict(decay_type="cosine", warmup_steps=10_000)

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
    config.model.variant = "mu/16"
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
