"""Scaling Vision Transformers (Zhai et al. 2022, 2106.04560): pre-training that is cooled down whenever one wants.

    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/scaling.py:variant=g/14
    ./bazelw run //projects/vit:train -- --config=scaling:variant=g/14,cooldown_from=runs/g14/checkpoints/500000

The first run (with `--workdir=runs/g14`, say) has no end in mind: after its warm-up the learning rate falls with the
square root of the steps, and a checkpoint is kept every 50,000 steps. The second goes on from one of them in a workdir
of its own, for 50,000 steps in which the rate falls to zero besides: so one long run gives the model of every length of
training (the paper's section 3.5). A run of one length does both by `--config.total_steps=300_000
--config.schedule.cooldown_steps=50_000`.

Arguments: `variant` (Ti/16, S/16, B/16, L/16, g/14, G/14, e/14, ...), `batch_size`, `cooldown_from` (a kept checkpoint)
and `cooldown` (its steps); `dataset`, `split`, `heldout` and `classes`, which name other data with single labels: the
paper's JFT-3B is not public, and ImageNet-21k is here in its place; `fewshot`, as in i21k.py.

All of the paper's section 3 is here: weight decay a hundred times stronger on the head, no class token but attention
pooling, no hidden layer before the head, the modified Adafactor. Parameters and state are split over the devices.

Expected: on JFT-3B and fine-tuned at 518 px, 90.45 % on ImageNet-1k for G/14. A step of g/14 with 4,096 images costs
6.6e15 FLOPs and one of G/14 1.2e16: 500,000 steps of G/14 are four days on 128 TPU v4 chips at half their peak.
"""

from pathlib import Path

from core import config as config_lib
from core.errors import UserError
from core.evaluators import published_evals


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg,
    variant="g/14",
    batch_size=4_096,
    cooldown_from="",
    cooldown=50_000,
    dataset="imagenet21k",
    split="full[51200:]",
    heldout="full[:51200]",
    classes=21_843,
    fewshot="all",
    runlocal=False,
  )
  res = 32 if arg.runlocal else 224
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = 4_000_000
  config.num_classes = arg.classes
  config.loss = "sigmoid_xent"
  config.init_head_bias = -10.0

  labels = f"onehot({arg.classes},key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name=arg.dataset, split=arg.split),
    batch_size=arg.batch_size,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop({res})|flip_lr|value_range(-1,1)|{labels}",
  )

  config.model_name = "vit"
  config.model = dict(variant=arg.variant, pool_type="map", scan=True, remat_policy="nothing_saveable")
  config.model.dtype_mm = "bfloat16"

  config.optax_name = "scale_by_adafactor"
  config.grad_clip_norm = 1.0
  config.lr = 8e-4
  # 0.03 for the body and 3.0 for the head, both times the learning rate (the paper's section 3.1).
  config.wd = 0.03 * config.lr
  config.wd_mults = [("head/kernel", 100.0), (".*/kernel", 1.0)]
  config.schedule = dict(decay_type="rsqrt", warmup_steps=10_000, timescale_steps=10_000)

  if arg.cooldown_from:
    step = Path(arg.cooldown_from).name
    if not step.isdigit():
      raise UserError(f"config argument cooldown_from={arg.cooldown_from!r} must name WORKDIR/checkpoints/STEP")
    config.resume = arg.cooldown_from
    config.total_steps = int(step) + arg.cooldown
    config.schedule.cooldown_steps = arg.cooldown

  config.evals = dict(
    val=dict(
      type="classification",
      data=dict(name=arg.dataset, split=arg.heldout),
      pp_fn=f"decode|resize_small({res * 8 // 7})|central_crop({res})|value_range(-1,1)|{labels}",
      batch_size=arg.batch_size,
      loss_name=config.loss,
      log_steps=10_000,
    ),
    **published_evals.fewshot(arg.fewshot, batch_size=arg.batch_size, log_steps=50_000),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000
  config.keep_ckpt_steps = 50_000

  if arg.runlocal:
    config.model.variant = "mu/16"
    config.total_steps = 20
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
