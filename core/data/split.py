"""The records of a split: of sources that hold theirs in memory, by the notation of `core.recipe.split`."""

from collections.abc import Mapping

from core.errors import UserError, nearest
from core.recipe import split as grammar
from core.recipe import words


def ranges(split: str, sizes: Mapping[str, int], where: str) -> list[tuple[str, int, int]]:
  """Returns the ranges that a split names, `[("train", 0, 49000)]`, with TFDS's rounding of percents (to the closest).

  Args:
    split: names of splits, each with an optional range in records or percent, joined by `+`.
    sizes: number of records of each split there is.
    where: the path of `split` in the config, for messages.

  Raises:
    UserError: a string that is no split, an unknown split, a range without records.
  """
  try:
    parts = grammar.read(split)
  except ValueError as error:
    raise UserError(f"{where}: {words.shown(split)} cannot be read; {error}") from None
  found = []
  for part in parts:
    if part.name not in sizes:
      raise UserError(f"{where}: there is no split {part.name!r}{nearest(part.name, sizes)}")
    size = sizes[part.name]
    low = 0 if part.low is None else _bound(part.low, size, part.percent)
    high = size if part.high is None else _bound(part.high, size, part.percent)
    found.append((part.name, low, max(low, high)))
  if not any(high > low for _, low, high in found):
    raise UserError(f"{where}: {split!r} holds no examples")
  return found


def _bound(value: int, size: int, percent: bool) -> int:
  value = round(value * size / 100) if percent else value
  return min(max(value + size if value < 0 else value, 0), size)
