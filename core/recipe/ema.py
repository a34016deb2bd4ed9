"""The average of the parameters as a config asks for it; core.optim.ema keeps it."""

import dataclasses
from typing import ClassVar, Literal

from core.recipe.duration import Duration, steps
from core.recipe.types import Dtype, Rate, Refused, Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ema:
  """An exponential moving average of the parameters.

  Attributes:
    decay: the part of the average that a step keeps, in [0, 1), 0.9999 say.
    dtype: the type that the average is stored in.
    rounding: how a sum is rounded to bfloat16. None is "compensated" for bfloat16 and "nearest" for float32.
    warmup: whether early parameters are forgotten quickly, by a decay that rises to `decay`.
    start: the length of training before averaging begins.
    sharding: the mesh axis over which the average is split, also where parameters are not.
  """

  TITLE: ClassVar[str] = "the average ema"

  decay: Rate
  dtype: Dtype = "bfloat16"
  rounding: Literal["stochastic", "compensated", "nearest"] | None = None
  warmup: bool = True
  start: Duration = steps(0)
  sharding: Text | None = None

  def __post_init__(self):
    if self.dtype == "float32" and self.rounding not in (None, "nearest"):
      raise Refused(f"{self.rounding!r} is for dtype='bfloat16'; leave it out for float32", key="rounding")
