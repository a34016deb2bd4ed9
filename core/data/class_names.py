"""Classes by name: a class's label is the place of its name in a list, which is sorted unless someone orders it."""

import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64

from core.errors import UserError, first_few, nearest

_FORMS = 'a list of names, a text file with a name a line, or a JSONL file with a "label" in every line'


def read(classes: Sequence[str] | str, folder: pathlib.Path, where: str, *, key: str = "label") -> tuple[str, ...]:
  """The names of the classes, in the order of their labels.

  Args:
    classes: the names; or a file: of text, a name a line, in that order; or a JSONL, the names under `key` sorted.
    folder: where a relative path starts.
    where: what asks, for messages.
    key: of a JSONL.

  Raises:
    UserError: no such file, no name, a name twice.
  """
  if isinstance(classes, str):
    file = folder / pathlib.Path(classes).expanduser()
    if not file.is_file():
      raise UserError(f"{where}: classes={classes!r} is no file {file}; it may be {_FORMS}")
    names = _read_jsonl(file, key) if file.suffix == ".jsonl" else _read_text(file)
  elif isinstance(classes, Sequence) and all(isinstance(name, str) for name in classes):
    names = tuple(classes)
  else:
    raise UserError(f"{where}: classes must be {_FORMS}, got {classes!r}")
  if not names:
    raise UserError(f"{where}: classes holds no name")
  if twice := sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []:
    raise UserError(f"{where}: classes holds {first_few(list(map(repr, twice)))} more than once")
  return names


def labels(names: Iterable[str], classes: tuple[str, ...], where: Iterable[str]) -> Int64[np.ndarray, "n"]:
  """The labels of some names.

  Raises:
    UserError: a name that is no class; `where` says of each name where it stands.
  """
  index = {name: label for label, name in enumerate(classes)}
  found = []
  for name, place in zip(names, where):
    if name not in index:
      raise UserError(f"{place}: {name!r} is none of the {len(classes)} classes{_nearest(name, classes)}")
    found.append(index[name])
  return np.array(found, np.int64)


def _nearest(name: str, classes: tuple[str, ...]) -> str:
  close = nearest(name, classes)
  return close if "did you mean" in close else f" (classes: {first_few(classes)})"


def _read_text(file: pathlib.Path) -> tuple[str, ...]:
  return tuple(filter(None, map(str.strip, file.read_text("utf-8").splitlines())))


def _read_jsonl(file: pathlib.Path, key: str) -> tuple[str, ...]:
  names: set[str] = set()
  for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
    if not line.strip():
      continue
    try:
      held = json.loads(line)[key]
    except (ValueError, KeyError, TypeError):
      raise UserError(f"{file} line {number}: no object with {key!r}, from which the classes are to be read") from None
    held = held if isinstance(held, list) else [held]
    if not all(isinstance(name, str) for name in held):
      raise UserError(f"{file} line {number}: {key!r} holds {held[0]!r}; names of classes are text")
    names.update(held)
  return tuple(sorted(names))
