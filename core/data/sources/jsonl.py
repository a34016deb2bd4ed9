"""A JSONL file: one example a line, images as paths to files."""

import json
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Shaped

from core import text_lines
from core.data import class_names, paths
from core.data import split as splits
from core.data.columns import Columns, bytes_column, describer, flatten, number_column, select
from core.errors import UserError, first_few
from core.recipe import sources, words


def read(data: sources.Jsonl, where: str) -> Columns:
  """Returns one column a key of the file; the whole file is the split `all`.

  Lists of text, such as captions, may differ in length: the shorter ones end in empty texts, which the pp ops `choice`
  and `tokenize` pass over. A list of names of classes gives a row of labels, which ends in -1s where others are longer:
  `onehot(..., multi=True)` takes it as it is.

  Raises:
    UserError: no such file or split; a line that is no such object, names no class, or names a folder, pipe, socket or
      device as its image, by its number.
  """
  path, of_file = data.path, f"{where}.path: {data.path}"
  file = paths.existing_file(path, f"{where}.path")
  lines = [(n, line) for n, line in enumerate(text_lines.read(file, f"{where}.path"), 1) if line.strip()]
  table = [_object(line, f"{of_file} line {number}") for number, line in lines]
  pieces = splits.of_source({"all": [len(table)]}, f"{where}.split")
  parts = pieces(data.split)
  _check_keys(table, lines, of_file)
  keys = list(table[0])
  known: tuple[str, ...] = ()
  if data.classes is not None:
    if data.label_key not in keys:
      raise UserError(f"{where}.label_key={data.label_key!r} is no key of its lines, which have {first_few(keys)}")
    known = class_names.read(data.classes, file.parent, f"{where}.classes", key=data.label_key)
    _replace_names(table, data.label_key, known, [f"{of_file} line {number}" for number, _ in lines])
  arrays = {key: _column([row[key] for row in table], key, of_file, lines) for key in keys}
  files = data.files
  if files is None:
    files = ("image",) if arrays.get("image", np.empty(0)).dtype == object else ()
  for key in files:
    if key not in arrays or arrays[key].dtype != object or arrays[key].ndim != 1:
      raise UserError(f"{where}.files={key!r} names no column of paths; the columns are {first_few(keys)}")
    named = [_resolved(file.parent, held.decode()) for held in arrays[key]]
    if (row := paths.first_irregular(named)) is not None:
      raise UserError(f"{of_file} line {lines[row][0]}: {key!r}: {named[row]} is no regular file")
    arrays[key] = bytes_column(named)

  def noun(_: str, row: int) -> str:
    held = "".join(f" ({arrays[key][row].decode()})" for key in files)
    return f"line {lines[row][0]} of {path}{held}"

  return Columns(f"{path} {data.split}", select({"all": arrays}, parts), describer(parts, noun), files, known, pieces)


def _check_keys(table: list[dict[str, Any]], lines: list[tuple[int, str]], where: str) -> None:
  for (number, _), row in zip(lines, table):
    if row.keys() != table[0].keys():
      key = sorted(row.keys() ^ table[0].keys())[0]
      news = "new here" if key in row else "missing"
      raise UserError(f"{where} line {number}: {key!r} is {news}; line 1 has {first_few(list(table[0]))}")


def _replace_names(table: list[dict[str, Any]], key: str, classes: tuple[str, ...], where: list[str]) -> None:
  """Puts labels in the place of the names under `key`, rows of labels padded to one length."""
  several = any(isinstance(row[key], list) for row in table)
  length = max(len(row[key]) if isinstance(row[key], list) else 1 for row in table)
  for row, place in zip(table, where):
    names = row[key] if isinstance(row[key], list) else [row[key]]
    if not all(isinstance(name, str) for name in names):
      held = words.shown(row[key])
      raise UserError(f"{place}: {key!r} holds {held}; with classes= it is the name of a class, or a list of them")
    labels = class_names.labels(names, classes, [f"{place}: {key!r}"] * len(names)).tolist()
    row[key] = labels + [-1] * (length - len(labels)) if several else labels[0]


def _resolved(folder: pathlib.Path, path: str) -> str:
  return path if "://" in path else str(folder / path)


def _object(line: str, where: str) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{where}: not JSON ({error})") from None
  if not isinstance(row, dict) or not row:
    raise UserError(f'{where}: not an object; a line reads {{"image": "a.jpg", "label": 3}}')
  return row


def _column(values: list[Any], key: str, where: str, lines: list[tuple[int, str]]) -> Shaped[np.ndarray, "n ..."]:
  """Returns an array: text as UTF-8 bytes, numbers as int64, float32 or bool, lists of one length as more axes."""
  values = _of_one_length(values)
  first = _shape(values[0])
  if first[-1] not in ("text", "number"):
    raise UserError(
      f"{where} line {lines[0][0]}: {key!r} holds {first[-1]}; a value is a number, text, or a list of them"
    )
  for (number, _), value in zip(lines, values):
    if _shape(value) != first:
      raise UserError(f"{where} line {number}: {key!r} has the form {_shape(value)}, on line 1 it has {first}")
  flat = list(flatten(values))
  if flat and isinstance(flat[0], str):
    array = _text_column(flat, key, where)
  elif flat:
    array = number_column(flat, f"{where}: {key!r}")
  else:
    array = np.zeros(0, np.float32)
  return array.reshape([len(values), *first[:-1]])


def _text_column(texts: list[str], key: str, where: str) -> Shaped[np.ndarray, "n"]:
  try:
    return bytes_column(texts)
  except UnicodeEncodeError:  # JSON can spell halves of characters.
    raise UserError(f"{where}: {key!r} holds text with half a character (a lone surrogate)") from None


def _of_one_length(values: list[Any]) -> list[Any]:
  """Returns lists of text filled up with empty ones; other values as they are."""
  if not all(isinstance(value, list) and all(isinstance(text, str) for text in value) for value in values):
    return values
  length = max(map(len, values))
  return [value + [""] * (length - len(value)) for value in values]


def _shape(value: Any) -> tuple:
  """Returns the lengths of nested lists, then the kind of what they hold: text or number."""
  if isinstance(value, list):
    inner = {_shape(v) for v in value} or {("number",)}
    return (len(value), *inner.pop()) if len(inner) == 1 else ("uneven",)
  return ("text" if isinstance(value, str) else "number" if isinstance(value, int | float) else type(value).__name__,)
