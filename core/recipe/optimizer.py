"""How parameters are updated: the keys of a config that core.optim reads."""

import dataclasses
from typing import Annotated, ClassVar

from core.recipe.ema import Ema
from core.recipe.sam import Sam
from core.recipe.schedule import Schedules, Stair
from core.recipe.transformations import Arguments
from core.recipe.types import Check, Count, NonNegative, Positive, Regex, Rules, Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agc:
  """Adaptive gradient clipping.

  Attributes:
    clipping: the largest norm of a unit's gradient relative to that of its weights. The larger the batch, the smaller.
    eps: the least that the norm of a unit's weights counts for.
    exclude: regexes over names of parameters that are not clipped. None is the head's.
  """

  TITLE: ClassVar[str] = "adaptive gradient clipping"

  clipping: Positive = 0.01
  eps: Positive = 1e-3
  exclude: tuple[Regex, ...] | None = None


def _is_no_freezing(factor: float) -> float:
  if factor == 0:
    raise ValueError("0 would still decay the weights; freeze with schedule=[(regex, None)]")
  return factor


Factor = Annotated[NonNegative, Check("a number above 0", _is_no_freezing)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """The optimizer's keys, which stand at the top of a config.

  Attributes:
    optax_name: the transformation of gradients, "scale_by_adam" say: optax's, "scale_by_adafactor" or "momentum_hp".
    optax: the arguments of that transformation.
    lr: the learning rate, that a schedule multiplies.
    lr_mults: factors on the learning rate of parameters by regex. 1 for those that match none.
    wd: the decoupled weight decay a step, which `lr` does not multiply.
    wd_mults: factors on the weight decay of parameters by regex, 0 for those that match none. None decays kernels.
    grad_clip_norm: the largest norm of all gradients together. None or 0 is no clipping.
    grad_clip_per_example: clips the gradient of each example to `grad_clip_norm` before their mean is taken. All of a
      part of the batch are in memory at once, see `grad_accum_steps`.
    agc: adaptive gradient clipping. None is none.
    schedule: the course of the learning rate, one, or by regex over names of parameters; None freezes those.
    ema: an average of the parameters to keep. None keeps none.
    sam: sharpness-aware steps. None is plain training.
    grad_accum_steps: the number of parts that each batch is split into, one after the other. Activations of one part
      alone are in memory. The gradient is the whole batch's, a contrastive loss compares all of it.
  """

  optax_name: Text
  optax: Arguments
  lr: NonNegative
  lr_mults: Rules[Factor] | None = None
  wd: NonNegative | None = None
  wd_mults: Rules[NonNegative] | None = None
  grad_clip_norm: NonNegative | None = None
  grad_clip_per_example: bool = False
  agc: Agc | None = None
  schedule: Schedules = dataclasses.field(default_factory=Stair)
  ema: Ema | None = None
  sam: Sam | None = None
  grad_accum_steps: Count = 1
