"""Splits in TFDS's notation: `train`, `train[:98%]`, `test[100:1_200]`, `val[:2shard]`, `train+test[:12.5%]`, `all`."""

import re
from typing import Annotated, Literal, NamedTuple

from core.recipe.types import Check, Text

# Of TFDS 4.9.10, `core/splits.py`; names may hold dots and slashes besides, as folders' names and arrays' keys do.
_BOUND = r"-?[0-9][0-9_.]{0,17}|-?\.[0-9_]{1,17}"
_UNIT = r"%|shard"
_PART = re.compile(
  rf"(?P<name>[\w./-]+)(?:\[(?:(?P<low>{_BOUND})(?P<low_unit>{_UNIT})?)?"
  rf"(?P<colon>:)?(?:(?P<high>{_BOUND})(?P<high_unit>{_UNIT})?)?(?P<end>\]))?"
)
_WRITE = "write it as train, train[:90%] or train[100:200]"


class Part(NamedTuple):
  """A range of the records of one split.

  Attributes:
    name: of the split. `all` is every split, one after the other, where none has that name.
    low: where it begins, from the end if negative; None: at the start.
    high: where it ends, likewise; None: at the end.
    unit: of the bounds: records, percents, which may have a fraction, or shards (files).
  """

  name: str
  low: float | None
  high: float | None
  unit: Literal["", "%", "shard"]


def read(split: str) -> list[Part]:
  """Returns the parts of a split, which are joined by `+`.

  Raises:
    ValueError: the text is no split; the reason in a few words.
  """
  return [_read(part) for part in re.split(r"\s*\+\s*", split)]


def _read(text: str) -> Part:
  match = _PART.fullmatch(text)
  if not match:
    raise ValueError(_WRITE)
  if not match["end"]:
    return Part(match["name"], None, None, "")
  bounds = (match["low"], match["high"])
  if bounds == (None, None):
    raise ValueError("a range has at least one bound, train[:90%] or train[100:]")
  units = {match["low_unit"], match["high_unit"]} - {None}
  if len(units) > 1:
    raise ValueError("both bounds of a range are of one unit")
  unit = units.pop() if units else ""  # As in TFDS, one % makes both bounds percents.
  low, high = (None if bound is None else _number(bound, unit) for bound in bounds)
  if not match["colon"]:
    # A colon that is missing lets the pattern find one number as two: both are of one text.
    if unit != "shard" or high is not None:
      raise ValueError("a range has a colon, train[:90%] or train[100:]; only shards go by one number, train[3shard]")
    high = low + 1 or None  # [-1shard] ends where the split ends.
  if unit == "%" and any(abs(bound) > 100 for bound in (low, high) if bound is not None):
    raise ValueError("percents are between -100 and 100")
  return Part(match["name"], low, high, unit)


def _number(text: str, unit: str) -> float:
  try:
    return float(text) if unit == "%" else int(text)
  except ValueError:
    raise ValueError(f"{text!r} is no {'number' if unit == '%' else 'whole number'}") from None


def _check(split: str) -> str:
  read(split)
  return split


Split = Annotated[Text, Check("a split", _check)]
