"""A JSONL file: one example a line, images as paths to files."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.data import class_names
from core.data import split as splits
from core.data.columns import Columns, bytes_column, describer, select
from core.errors import UserError
from core.files import from_here


def load(
  *,
  path: str,
  split: str = "all",
  files: tuple[str, ...] | None = None,
  classes: Sequence[str] | str | None = None,
  label_key: str = "label",
  name: str = "jsonl",
) -> Columns:
  """One column a key of `path`; the whole file is the split `all`.

  Args:
    path: the file. Every line is an object with the keys of the first; values are numbers, text, or equally long lists.
      Lists of text, such as captions, may differ in length: the shorter ones end in empty texts, which the pp ops
      `choice` and `tokenize` pass over.
    split: `all`, or a part of it: `all[:90%]`.
    files: keys that hold paths (absolute, or relative to the JSONL's folder); the example gets the file's bytes. By
      default `image`, where it is text.
    classes: turns names of classes under `label_key` into labels; see `core.data.class_names.read`. Evaluation takes
      the classes of training: `classes="train.jsonl"` for both. A list of names gives a row of labels, which ends in
      -1s where others are longer: `onehot(..., multi=True)` takes it as it is.
    label_key: where those names are.
    name: unused; every source may be named.

  Raises:
    UserError: no such file or split, a line that is no such object or names no class, by its number.
  """
  file = from_here(path)
  if not file.is_file():
    raise UserError(f"data source jsonl: no file {path}")
  with file.open("rb") as stream:
    lines = [(number, line) for number, line in enumerate(stream, 1) if line.strip()]
  table = [_object(line, f"{path} line {number}") for number, line in lines]
  parts = splits.ranges(split, {"all": len(table)}, path)
  keys = list(table[0])
  known: tuple[str, ...] = ()
  for (number, _), row in zip(lines, table):
    if row.keys() != table[0].keys():
      key = sorted(row.keys() ^ table[0].keys())[0]
      raise UserError(f"{path} line {number}: {key!r} is {'new here' if key in row else 'missing'}; line 1 has {keys}")
  if classes is not None:
    if label_key not in keys:
      raise UserError(f"{path}: label_key={label_key!r} is no key of its lines, which have {keys}")
    known = class_names.read(classes, file.parent, path, key=label_key)
    _replace_names(table, label_key, known, [f"{path} line {number}" for number, _ in lines])
  arrays = {key: _column([row[key] for row in table], key, path, lines) for key in keys}
  if files is None:
    files = ("image",) if arrays.get("image", np.empty(0)).dtype == object else ()
  for key in files:
    if key not in arrays or arrays[key].dtype != object:
      raise UserError(f"{path}: files={key!r} names no column of paths; the columns are {keys}")
    arrays[key] = bytes_column(_resolved(file.parent, held.decode()) for held in arrays[key])

  def noun(_: str, row: int) -> str:
    held = "".join(f" ({arrays[key][row].decode()})" for key in files)
    return f"line {lines[row][0]} of {path}{held}"

  return Columns(f"{path} {split}", select({"all": arrays}, parts), describer(parts, noun), tuple(files), known)


def _replace_names(table: list[dict[str, Any]], key: str, classes: tuple[str, ...], where: list[str]) -> None:
  """Puts labels in the place of the names under `key`, rows of labels padded to one length."""
  several = any(isinstance(row[key], list) for row in table)
  length = max(len(row[key]) if isinstance(row[key], list) else 1 for row in table)
  for row, place in zip(table, where):
    names = row[key] if isinstance(row[key], list) else [row[key]]
    if not all(isinstance(name, str) for name in names):
      raise UserError(
        f"{place}: {key!r} holds {row[key]!r}; with classes= it is the name of a class, or a list of them"
      )
    labels = class_names.labels(names, classes, [f"{place}: {key!r}"] * len(names)).tolist()
    row[key] = labels + [-1] * (length - len(labels)) if several else labels[0]


def _resolved(folder: pathlib.Path, path: str) -> str:
  return path if "://" in path else str(folder / path)


def _object(line: bytes, where: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except ValueError as error:
    raise UserError(f"{where}: not JSON ({error})") from None
  if not isinstance(row, dict) or not row:
    raise UserError(f'{where}: not an object; a line reads {{"image": "a.jpg", "label": 3}}')
  return row


def _column(values: list[Any], key: str, path: str, lines: list[tuple[int, bytes]]) -> np.ndarray:
  """Text becomes an object array of UTF-8 bytes, numbers int64, float32 or bool, lists of one length more axes."""
  values = _of_one_length(values)
  first = _shape(values[0])
  if first[-1] not in ("text", "number"):
    raise UserError(
      f"{path} line {lines[0][0]}: {key!r} holds {first[-1]}; a value is a number, text, or a list of them"
    )
  for (number, _), value in zip(lines, values):
    if _shape(value) != first:
      raise UserError(f"{path} line {number}: {key!r} has the form {_shape(value)}, on line 1 it has {first}")
  flat = list(_flatten(values))
  if flat and isinstance(flat[0], str):
    array = bytes_column(flat)
  else:
    array = np.array(flat)
    array = array.astype({"b": bool, "i": np.int64}.get(array.dtype.kind, np.float32))
  return array.reshape([len(values), *first[:-1]])


def _of_one_length(values: list[Any]) -> list[Any]:
  """Lists of text, filled up with empty ones; other values as they are."""
  if not all(isinstance(value, list) and all(isinstance(text, str) for text in value) for value in values):
    return values
  length = max(map(len, values))
  return [value + [""] * (length - len(value)) for value in values]


def _shape(value: Any) -> tuple:
  """Lengths of nested lists, then the kind of what they hold: text or number."""
  if isinstance(value, list):
    inner = {_shape(v) for v in value} or {("number",)}
    return (len(value), *inner.pop()) if len(inner) == 1 else ("uneven",)
  return ("text" if isinstance(value, str) else "number" if isinstance(value, int | float) else type(value).__name__,)


def _flatten(value: Any):
  if isinstance(value, list):
    for inner in value:
      yield from _flatten(inner)
  else:
    yield value
