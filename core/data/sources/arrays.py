"""NumPy arrays: the columns of an `.npz` file, or arrays handed in."""

import numpy as np
from jaxtyping import Shaped

from core.data import paths
from core.data import split as splits
from core.data.columns import Columns, bytes_column, check_exact, describer, flatten, select
from core.errors import UserError
from core.recipe import sources, words

_KINDS = "biufcV"  # V: bfloat16 and its like.


def read(data: sources.Arrays, where: str) -> Columns:
  """Returns the columns of a split.

  Raises:
    UserError: no such file or split, a file that is no .npz, what is no column.
  """
  name, of_arrays = (data.path, f"{where}.path") if data.path is not None else (data.name, f"{where}.columns")
  tables: dict[str, dict[str, np.ndarray]] = {}
  for key, array in (_load(data.path, of_arrays) if data.path is not None else data.columns).items():
    table, _, column = key.rpartition("/")
    tables.setdefault(table or "all", {})[column] = _as_column(array, f"{of_arrays}: {words.shown(key)}")
  if data.split == "all" and "all" not in tables:  # What stands where a config says nothing is no wish for all of them.
    raise UserError(f"{where}.split is missing; {name} holds the splits {', '.join(sorted(tables))}")
  shards = {table: [len(next(iter(columns.values())))] for table, columns in tables.items()}
  pieces = splits.of_source(shards, f"{where}.split")
  parts = pieces(data.split)
  for table, _, _ in parts:  # Unequal columns must be refused before they are cut to a range.
    Columns(f"{of_arrays}: {name} {table}", tables[table], str)

  def noun(_: str, row: int) -> str:
    return f"row {row} of {name}"

  return Columns(f"{name} {data.split}", select(tables, parts), describer(parts, noun), pieces=pieces)


def _load(path: str, where: str) -> dict[str, np.ndarray]:
  file = paths.existing_file(path, where)
  try:
    with np.load(file, allow_pickle=False) as archive:
      return {key: archive[key] for key in archive.files}
  except MemoryError:
    raise
  except Exception as error:  # NumPy's, zipfile's and zlib's own kinds, by what is wrong with the file.
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise UserError(f"{where}: {path} is not a readable .npz file ({reason})") from None


def _as_column(values: object, where: str) -> Shaped[np.ndarray, "n ..."]:
  if isinstance(values, tuple):  # A config's list; an array's type was chosen by who made it.
    check_exact([each for each in flatten(values) if isinstance(each, int | float)], where)
  try:
    array = np.asarray(values)
  except ValueError:
    raise UserError(f"{where} holds lists of unequal lengths") from None
  if array.ndim == 0:
    raise UserError(f"{where} is a single value; a column has one entry an example")
  if array.dtype.kind in "US":
    return bytes_column(array.flat).reshape(array.shape)
  if array.dtype == object:
    if other := [each for each in array.flat if not isinstance(each, bytes | str)]:
      raise UserError(f"{where} holds {words.shown(other[0])}; a column is of numbers or of text")
    return bytes_column(array.flat).reshape(array.shape) if any(isinstance(each, str) for each in array.flat) else array
  if array.dtype.kind not in _KINDS:
    raise UserError(f"{where} holds {array.dtype.name}; a column is of numbers or of text")
  if array.dtype == np.uint64 and array.size and (large := array.max()) > np.iinfo(np.int64).max:
    raise UserError(f"{where} holds {large}, from 2^63 on; labels and ids are int64")
  return array
