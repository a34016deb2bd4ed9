"""The records of a split, by the notation of `core.recipe.split`, which TFDS defines."""

import functools
from collections.abc import Callable, Mapping, Sequence

from core.errors import UserError, nearest
from core.recipe import split as grammar
from core.recipe import words

_ALL = "all"


def ranges(split: str, shards: Mapping[str, Sequence[int]], where: str) -> list[tuple[str, int, int]]:
  """Returns the ranges that a split names, `[("train", 0, 49000)]`, as TFDS 4.9.10 reads it.

  Percents are rounded to the closest record. `all` is every split, where none has that name.

  Args:
    split: names of splits, each with an optional range in records, percents or shards, joined by `+`.
    shards: the number of records in each file of each split there is; what lies in memory is one.
    where: the path of `split` in the config, for messages.

  Raises:
    UserError: a string that is no split, an unknown split, a range that reaches beyond its split or has no records.
      TFDS itself takes shards that there are not for the end, and `[:0shard]` for all.
  """
  try:
    parts = grammar.read(split)
  except ValueError as error:
    raise UserError(f"{where}: {words.shown(split)} cannot be read; {error}") from None
  found = []
  for part in parts:
    if part.name == _ALL and _ALL not in shards:
      if part.low is not None or part.high is not None:
        raise UserError(f"{where}: {_ALL!r} is every split and has no ranges; give each of {', '.join(shards)} one")
      found += [(name, 0, sum(lengths)) for name, lengths in shards.items()]
      continue
    if part.name not in shards:
      raise UserError(f"{where}: there is no split {part.name!r}{nearest(part.name, shards)}")
    try:
      low, high = _bounds(part, shards[part.name])
    except ValueError as error:
      raise UserError(f"{where}: {words.shown(split)}: {error}") from None
    found.append((part.name, low, max(low, high)))
  if not any(high > low for _, low, high in found):
    raise UserError(f"{where}: {split!r} holds no examples")
  return found


def of_source(shards: Mapping[str, Sequence[int]], where: str) -> Callable[[str], list[tuple[str, int, int]]]:
  """Returns `ranges` of the splits of one source."""
  return functools.partial(ranges, shards=shards, where=where)


def _bounds(part: grammar.Part, shards: Sequence[int]) -> tuple[int, int]:
  """Returns the first record and the one behind the last.

  Raises:
    ValueError: a bound beyond the split, or one from its end that is rounded to the end: `[-1%:]` of 30 would be all.
  """
  size = sum(shards)
  low, high = part.low, part.high
  if part.unit == "shard":
    if beyond := [bound for bound in (low, high) if bound is not None and abs(bound) > len(shards)]:
      raise ValueError(f"{beyond[0]}shard is beyond {part.name!r}, which has {len(shards):,} of them")
    low, high = (None if bound is None else sum(shards[:bound]) for bound in (low, high))
  elif part.unit == "%":
    for bound in (low, high):
      if bound is not None and bound < 0 and not round(bound * size / 100):
        raise ValueError(f"{bound:g}% of the {size:,} examples of {part.name!r} is none")
    low, high = (None if bound is None else round(bound * size / 100) for bound in (low, high))
  for bound in (low, high):
    if bound is not None and abs(bound) > size:
      raise ValueError(f"{bound:,} is beyond {part.name!r}, which holds {size:,} examples")
  low, high = 0 if low is None else low, size if high is None else high
  return low + size * (low < 0), high + size * (high < 0)
