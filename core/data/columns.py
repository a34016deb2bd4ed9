"""A source that lies in memory: equally long NumPy arrays, one a key."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from core.errors import UserError
from core.recipe import words

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Columns:
  """Records in memory.

  Attributes:
    name: the source and split in words, for messages.
    arrays: one array [records, ...] a key; text and bytes are object arrays of `bytes`.
    describe: what to call a row in a message.
    files: keys of `arrays` that hold paths, of files whose bytes the example gets in their place.
    classes: the names of the classes in the order of their labels, where the source knows them.
    pieces: gives the ranges of records that a split of the same source names; None: this is no part of a source.
  """

  name: str
  arrays: dict[str, np.ndarray]
  describe: Callable[[int], str]
  files: tuple[str, ...] = ()
  classes: tuple[str, ...] = ()
  pieces: Callable[[str], list[tuple[str, int, int]]] | None = None

  def __post_init__(self):
    sizes = {key: len(array) for key, array in self.arrays.items()}
    if len(set(sizes.values())) > 1:
      raise UserError(f"{self.name}: columns of unequal lengths: {', '.join(f'{k} {n}' for k, n in sizes.items())}")
    if not len(self):
      raise UserError(f"{self.name}: holds no examples")

  def __len__(self) -> int:
    return len(next(iter(self.arrays.values()), ()))

  def take(self, rows: Int[np.ndarray, "rows"]) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
    """Returns the records `rows`, as a dict of arrays [len(rows), ...]."""
    return {key: array[rows] for key, array in self.arrays.items()}


def bytes_column(values: Iterable[str | bytes]) -> Shaped[np.ndarray, "values"]:
  """Returns an object array of `bytes`: the form of text (UTF-8) and of encoded images, which TensorFlow gives back."""
  values = [value.encode() if isinstance(value, str) else bytes(value) for value in values]
  column = np.empty(len(values), object)
  column[:] = values
  return column


def number_column(values: Sequence[float], where: str) -> Shaped[np.ndarray, "values"]:
  """Returns whole numbers as int64, numbers of which some have a fraction as float32, and True and False as bool.

  Raises:
    UserError: a whole number that 64 bits do not hold, or beside fractions 32 bits; a number beyond float32.
  """
  check_exact(values, where)
  kinds = {type(value) for value in values}
  return np.array(values, np.float32 if float in kinds else bool if kinds == {bool} else np.int64)


def check_exact(values: Sequence[float], where: str) -> None:
  """Refuses numbers of one column that would become others: devices compute fractions in float32.

  Raises:
    UserError: as `number_column`.
  """
  has_fractions = any(isinstance(value, float) for value in values)
  for value in values:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
      raise UserError(f"{where} holds {words.shown(value)}, which 64 bits do not hold")
    if has_fractions and isinstance(value, int) and abs(value) > 2**24 and int(np.float32(value)) != value:
      raise UserError(f"{where} holds {value} beside fractions, and float32 holds no such whole number")
    if isinstance(value, float) and math.isfinite(value) and abs(value) > _LARGEST:
      raise UserError(f"{where} holds {value}, which is beyond float32")


def flatten(value: Any) -> Iterator[Any]:
  """Yields what nested lists hold."""
  if isinstance(value, list | tuple):
    for inner in value:
      yield from flatten(inner)
  else:
    yield value


def select(
  arrays: dict[str, dict[str, Shaped[np.ndarray, "rows ..."]]], parts: list[tuple[str, int, int]]
) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
  """Returns the ranges `parts` (see `core.data.split`) of named splits, one after the other; a view of a single one."""
  cuts = [{key: array[low:high] for key, array in arrays[name].items()} for name, low, high in parts]
  return cuts[0] if len(cuts) == 1 else {key: np.concatenate([cut[key] for cut in cuts]) for key in cuts[0]}


def describer(parts: list[tuple[str, int, int]], noun: Callable[[str, int], str]) -> Callable[[int], str]:
  """Returns `describe` of the columns that `select` gives: `noun(split, row in that split)`."""

  def describe(row: int) -> str:
    for name, low, high in parts:
      if row < high - low:
        return noun(name, low + row)
      row -= high - low
    raise IndexError(row)

  return describe
