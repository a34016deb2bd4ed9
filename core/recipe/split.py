"""Splits by name, with ranges: `train`, `train[:98%]`, `test[100:200]`, `train+test[:50%]`."""

import re
from typing import Annotated, NamedTuple

from core.recipe.types import Check, Text

_BOUND = r"-?[0-9]{1,18}%?"
_PART = re.compile(rf"(?P<name>[\w./-]+)(?:\[(?P<low>{_BOUND})?:(?P<high>{_BOUND})?\])?")

# As TFDS writes them: decimals, underscores in numbers, single shards and ranges of shards as well.
_TFDS_BOUND = r"-?[0-9][0-9_.]{0,17}(?:%|shard)?"
_TFDS_PART = re.compile(rf"[\w-]+(?:\[(?:{_TFDS_BOUND}|(?:{_TFDS_BOUND})?:(?:{_TFDS_BOUND})?)\])?")


class Part(NamedTuple):
  """A range of the records of one split.

  Attributes:
    name: of the split.
    low: the first record, from the end if negative; None: from the start.
    high: the record after the last; None: to the end.
    percent: whether the bounds are percents of the split, not records.
  """

  name: str
  low: int | None
  high: int | None
  percent: bool


def read(split: str) -> list[Part]:
  """Returns the parts of a split, which are joined by `+`.

  Raises:
    ValueError: the text is no split; the reason in a few words.
  """
  return [_read(part.strip()) for part in split.split("+")]


def _read(text: str) -> Part:
  match = _PART.fullmatch(text)
  if not match:
    raise ValueError("write it as train, train[:90%] or train[100:200]")
  percent = "%" in text  # As in TFDS, one % makes both bounds percents.
  low, high = (None if match[key] is None else int(match[key].rstrip("%")) for key in ("low", "high"))
  if percent and any(abs(bound) > 100 for bound in (low, high) if bound is not None):
    raise ValueError("percents are between -100 and 100")
  return Part(match["name"], low, high, percent)


def _check(split: str) -> str:
  read(split)
  return split


def _check_tfds(split: str) -> str:
  if not all(_TFDS_PART.fullmatch(part.strip()) for part in split.split("+")):
    raise ValueError("write it as train, train[:90%] or train[100:200]")
  return split


Split = Annotated[Text, Check("a split", _check)]
TfdsSplit = Annotated[Text, Check("a split", _check_tfds)]
