"""Learning-rate schedules as a config gives them, a dataclass a decay; core.optim.schedule computes them.

config.schedule = dict(decay_type="cosine", warmup_steps=10_000)
config.schedule = [("head/.*", dict(decay_type="linear", mult=0.1)), ("img/.*", None), (".*", dict(warmup_epochs=1))]
"""

import dataclasses
from typing import Annotated, Any, ClassVar

from core.recipe import annotations
from core.recipe.duration import UNITS, Duration, steps
from core.recipe.types import Fraction, NonNegative, OneOf, Positive, Refused, Regex

_SIZES = ("total_steps", "batch_size", "data_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decay:
  """What every schedule has.

  Attributes:
    warmup: the length of the linear rise from 0 with which training begins.
    cooldown: the length of the linear fall to 0 with which training ends.
    scale_with_batchsize: whether the rate is multiplied by the batch size / 256.
    mult: a factor on the whole schedule.
  """

  warmup: Duration = steps(0)
  cooldown: Duration = steps(0)
  scale_with_batchsize: bool = False
  mult: NonNegative = 1.0

  @classmethod
  def hint(cls, key: str) -> str | None:
    """Returns what to say of a key that this decay does not have."""
    owners = [name for name, kind in DECAYS.items() if key in annotations.keys_of(kind)]
    if owners:
      return f"belongs to decay_type {' or '.join(owners)}, and is no key of {cls.TITLE}"
    if key == "base":
      return "is not set here; scale a schedule by mult"
    return "is not set here, but at the top of the config" if key in _SIZES else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Decay):
  """A rate that stays as it is."""

  TITLE: ClassVar[str] = "the schedule constant"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Decay):
  """A rate that falls to 0 along half a wave of the cosine."""

  TITLE: ClassVar[str] = "the schedule cosine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Polynomial(Decay):
  """A rate that falls along a line, or a power of one.

  Attributes:
    end: the factor on `lr` at the end of training. Neither `mult` nor the batch size scales it. 0 if not given.
    linear_end: the older name of `end`.
    power: the exponent of what is left of training. 1 is a line.
  """

  TITLE: ClassVar[str] = "the schedules linear and polynomial"

  end: NonNegative | None = None
  linear_end: NonNegative | None = None
  power: Positive = 1.0

  def __post_init__(self):
    if self.end is not None and self.linear_end is not None:
      raise Refused("end and linear_end are both set; keep one of them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rsqrt(Decay):
  """A rate that falls with the inverse square root of the step.

  Attributes:
    timescale: the time after which the rate has fallen to 1 / sqrt(2), and the larger, the slower it falls.
    shift: the time by which the fall is ahead, that of training before this run.
  """

  TITLE: ClassVar[str] = "the schedule rsqrt"

  timescale: Duration = steps(10_000)
  shift: Duration = steps(0)

  def __post_init__(self):
    if self.timescale.value == 0:
      raise Refused("must be above 0, at least one step", key=f"timescale_{self.timescale.unit}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stair(Decay):
  """A rate that stays as it is between boundaries, at which it takes another level; without any it is constant.

  Attributes:
    steps: the boundaries in steps, increasing.
    stair_steps: another name of `steps`.
    stair_examples: the boundaries in examples.
    stair_epochs: the boundaries in epochs.
    stair_percent: the boundaries in fractions of the whole run, in [0, 1].
    mults: the level from each boundary on, in place of the level before, as a factor on the rate.
  """

  TITLE: ClassVar[str] = "the schedule stair"

  steps: tuple[NonNegative, ...] | None = None
  stair_steps: tuple[NonNegative, ...] | None = None
  stair_examples: tuple[NonNegative, ...] | None = None
  stair_epochs: tuple[NonNegative, ...] | None = None
  stair_percent: tuple[Fraction, ...] | None = None
  mults: tuple[NonNegative, ...] = ()

  def __post_init__(self):
    given = self._given()
    if len(given) > 1:
      raise Refused(f"{' and '.join(given)} are both set; keep one of them")
    boundaries = len(self.boundaries(""))
    if boundaries != len(self.mults):
      raise Refused(f"must be as many as the boundaries, {boundaries}, got {len(self.mults)}", key="mults")

  def _given(self) -> list[str]:
    names = ("steps", *(f"stair_{unit}" for unit in UNITS))
    return [name for name in names if getattr(self, name) is not None]

  def boundaries(self, where: str) -> tuple[Duration, ...]:
    """Returns the boundaries as durations from the start of training; `where` is the schedule's path, for messages."""
    for key in self._given():
      return tuple(Duration(value, key.removeprefix("stair_"), f"{where}.{key}") for value in getattr(self, key))
    return ()


DECAYS: dict[str, type[Decay]] = {
  "constant": Constant,
  "cosine": Cosine,
  "linear": Polynomial,
  "polynomial": Polynomial,
  "rsqrt": Rsqrt,
  "stair": Stair,
}

Schedule = Annotated[Any, OneOf("decay_type", DECAYS, default="stair")]

# One for all parameters, or [(regex, one)]; None freezes what the regex matches.
Schedules = Schedule | tuple[tuple[Regex, Schedule | None], ...]
