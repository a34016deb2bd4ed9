"""Classes by name: a class's label is the place of its name in a list, which is sorted unless someone orders it.

Whole numbers are sorted by their values, and stand before other names: the folders 0 to 999 are the labels 0 to 999.
"""

import collections
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64

from core import text_lines
from core.data import paths
from core.errors import UserError, first_few, nearest
from core.recipe import words

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


def read(classes: Sequence[str] | str, folder: pathlib.Path, where: str, *, key: str = "label") -> tuple[str, ...]:
  """Returns the names of the classes, in the order of their labels.

  Args:
    classes: the names; or a file: of text, a name a line, in that order; or a JSONL, those under `key`, see `in_order`.
    folder: where a relative path starts.
    where: the path of `classes` in the config, for messages.
    key: of a JSONL.

  Raises:
    UserError: no such file, no name, a name twice.
  """
  if isinstance(classes, str):
    file = paths.existing_file(classes, where, folder)
    names = _read_jsonl(file, key, where) if file.suffix == ".jsonl" else tuple(text_lines.read_filled(file, where))
  else:
    names = tuple(classes)
  if not names:
    raise UserError(f"{where} holds no name")
  if len(set(names)) < len(names):
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    raise UserError(f"{where} holds {first_few(list(map(repr, sorted(twice))))} more than once")
  return names


def in_order(names: Iterable[str]) -> tuple[str, ...]:
  """Returns names in the order of their labels."""

  def place(name: str) -> tuple[bool, int, str]:
    is_number = _WHOLE_NUMBER.fullmatch(name) is not None
    return (not is_number, int(name) if is_number else 0, name)

  return tuple(sorted(names, key=place))


def labels(names: Iterable[str], classes: tuple[str, ...], where: Iterable[str]) -> Int64[np.ndarray, "n"]:
  """Returns the labels of some names.

  Raises:
    UserError: a name that is no class; `where` says of each name where it stands.
  """
  index = {name: label for label, name in enumerate(classes)}
  found = []
  for name, place in zip(names, where):
    if name not in index:
      line = f"{place}: {name!r} is none of the {len(classes)} classes{_nearest(name, classes)}"
      raise UserError(line)
    found.append(index[name])
  return np.array(found, np.int64)


def _nearest(name: str, classes: tuple[str, ...]) -> str:
  close = nearest(name, classes)
  return close if "did you mean" in close else f" (classes: {first_few(classes)})"


def _read_jsonl(file: pathlib.Path, key: str, where: str) -> tuple[str, ...]:
  names: set[str] = set()
  for number, line in enumerate(text_lines.read(file, where), 1):
    if not line.strip():
      continue
    try:
      held = json.loads(line)[key]
    except (ValueError, KeyError, TypeError, RecursionError):
      raise UserError(f"{where}: {file} line {number}: no object with {key!r}, a class's name") from None
    held = held if isinstance(held, list) else [held]
    if not all(isinstance(name, str) for name in held):
      shown = words.shown(held)
      raise UserError(f"{where}: {file} line {number}: {key!r} holds {shown}; names of classes are text")
    names.update(held)
  return in_order(names)
