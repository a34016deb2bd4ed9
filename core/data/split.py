"""Splits of sources that hold their records in memory: `train`, `train[:98%]`, `test[100:200]`, `train+test[:50%]`."""

import re
from collections.abc import Mapping

from core.errors import UserError, nearest

_PART = re.compile(r"(?P<name>[\w./-]+)(?:\[(?P<low>-?\d+%?)?:(?P<high>-?\d+%?)?\])?")


def ranges(split: str, sizes: Mapping[str, int], where: str) -> list[tuple[str, int, int]]:
  """`[("train", 0, 49000)]`: the ranges that `split` names, in TFDS's notation with its rounding (to the closest).

  Args:
    split: names of splits, each with an optional range in records or percent, joined by `+`.
    sizes: number of records of each split there is.
    where: what the split belongs to, for the messages.

  Raises:
    UserError: a string that is no split, an unknown split, a range without records.
  """
  found = []
  for part in split.split("+"):
    match = _PART.fullmatch(part.strip())
    if not match:
      raise UserError(f"{where}: split {split!r} cannot be read; write it as train, train[:90%] or train[100:200]")
    name = match["name"]
    if name not in sizes:
      raise UserError(f"{where}: there is no split {name!r}{nearest(name, sizes)}")
    size = sizes[name]
    percent = "%" in part  # As in TFDS, one % makes both bounds percents.
    low = 0 if match["low"] is None else _bound(match["low"], size, percent)
    high = size if match["high"] is None else _bound(match["high"], size, percent)
    found.append((name, low, max(low, high)))
  if not any(high > low for _, low, high in found):
    raise UserError(f"{where}: split {split!r} holds no examples")
  return found


def _bound(text: str, size: int, percent: bool) -> int:
  value = int(text.rstrip("%"))
  value = round(value * size / 100) if percent else value
  return min(max(value + size if value < 0 else value, 0), size)
