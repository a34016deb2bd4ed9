"""Durations in any unit: `warmup_epochs=5`, `log_percent=0.1`, `total_examples=9e8`, ... -> a number of steps."""

from collections.abc import Mapping
from typing import Any

from core.errors import UserError

UNITS = ("steps", "examples", "epochs", "percent")


def steps(
  name: str,
  config: Mapping[str, Any],
  *,
  batch_size: int | None = None,
  data_size: int | None = None,
  total_steps: int | None = None,
  default: int | None = None,
) -> int | None:
  """Steps of the duration `name`, given in `config` under `<name>_{steps,examples,epochs,percent}`.

  Args:
    name: the key without its unit, `"warmup"` say.
    config: where the duration may stand, in one unit at most.
    batch_size: examples a step, needed for `_examples` and `_epochs`.
    data_size: examples an epoch, needed for `_epochs`.
    total_steps: steps of the whole run, needed for `_percent` (a fraction in [0, 1]).
    default: what to return where no unit is given.

  Returns:
    The number of steps, rounded to the nearest; at least 1 for a duration greater than zero.

  Raises:
    UserError: two units at once, a negative or non-numeric value, or a unit that cannot be known here.
  """
  given = {unit: config[f"{name}_{unit}"] for unit in UNITS if config.get(f"{name}_{unit}") is not None}
  if not given:
    return default
  if len(given) > 1:
    raise UserError(f"config: {' and '.join(f'{name}_{unit}' for unit in given)} are both set; keep one of them")
  ((unit, value),) = given.items()
  key = f"{name}_{unit}"
  if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
    raise UserError(f"config: {key} must be a number that is not negative, got {value!r}")
  if unit == "percent" and value > 1:
    raise UserError(f"config: {key} is a fraction of training in [0, 1], got {value!r}")
  need = {"steps": (), "examples": (batch_size,), "epochs": (batch_size, data_size), "percent": (total_steps,)}[unit]
  if any(n is None for n in need):
    raise UserError(f"config: {key} cannot be turned into steps here; give {name}_steps instead")
  exact = {
    "steps": lambda: value,
    "examples": lambda: value / batch_size,
    "epochs": lambda: value * data_size / batch_size,
    "percent": lambda: value * total_steps,
  }[unit]()
  return max(1, round(exact)) if exact > 0 else 0
