"""Durations in any unit: `warmup_epochs=5`, `log_percent=0.1`, `total_examples=9e8`, ... -> a number of steps."""

import dataclasses
from typing import Annotated, Literal

from core.errors import UserError

Unit = Literal["steps", "examples", "epochs", "percent"]
_MOST_STEPS = 2**63
UNITS: tuple[Unit, ...] = ("steps", "examples", "epochs", "percent")


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training; of a field `warmup` a config gives it as `warmup_steps`, `warmup_epochs`, ...

  Attributes:
    value: not negative; of percent a fraction in [0, 1].
    unit: "steps", "examples", "epochs" or "percent" of the whole run.
    key: what a config calls it, for messages: `"config.schedule.warmup_epochs"`.
  """

  value: float
  unit: Unit
  key: str = dataclasses.field(default="", compare=False, repr=False)

  def steps(
    self, *, total_steps: int | None = None, batch_size: int | None = None, data_size: int | None = None
  ) -> int:
    """Returns the number of steps, rounded to the nearest; at least 1 for a duration above zero.

    Args:
      total_steps: of the whole run, needed for percent.
      batch_size: examples a step, needed for examples and epochs.
      data_size: examples an epoch, needed for epochs.

    Raises:
      UserError: what the unit needs is not known, or the steps are more than a counter holds.
    """
    need = {"steps": (), "examples": (batch_size,), "epochs": (batch_size, data_size), "percent": (total_steps,)}
    if None in need[self.unit]:
      name = (self.key or self.unit).removesuffix(f"_{self.unit}")
      raise UserError(f"{self.key or self.unit} cannot be turned into steps here; give {name}_steps instead")
    exact = self.value
    match self.unit:
      case "examples":
        exact = self.value / batch_size
      case "epochs":
        exact = self.value * data_size / batch_size
      case "percent":
        exact = self.value * total_steps
    if exact >= _MOST_STEPS:
      raise UserError(f"{self.key or self.unit} must be fewer steps than a counter holds, 2^63, got {self.value:g}")
    return max(1, round(exact)) if exact > 0 else 0


@dataclasses.dataclass(frozen=True)
class Units:
  """A marker of an annotation: the units in which a duration can be given."""

  units: tuple[Unit, ...]


# A duration that is not a part of the run: the run's own length.
Length = Annotated[Duration, Units(("steps", "examples", "epochs"))]


def steps(count: float) -> Duration:
  """Returns a duration of so many steps, for defaults."""
  return Duration(count, "steps")
