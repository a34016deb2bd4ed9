"""NumPy arrays: the columns of an `.npz` file, or arrays handed in."""

import zipfile
from collections.abc import Mapping

import numpy as np

from core.data import split as splits
from core.data.columns import Columns, bytes_column, describer, select
from core.errors import UserError
from core.files import from_here


def load(
  *, path: str | None = None, columns: Mapping[str, np.ndarray] | None = None, split: str = "all", name: str = "arrays"
) -> Columns:
  """Columns of `path` (.npz) or `columns`, two forms: `image`, `label`, ... are one split, named `all`; the keys
  `train/image`, `train/label`, `test/image`, ... are the splits `train` and `test`.

  Raises:
    UserError: no such file or split, a file that is no .npz, both or neither of `path` and `columns`.
  """
  if (path is None) == (columns is None):
    raise UserError("data source arrays: give one of path (an .npz file) and columns (a dict of arrays)")
  name = path or name
  tables: dict[str, dict[str, np.ndarray]] = {}
  for key, array in (_read(path) if path is not None else columns).items():
    table, _, column = key.rpartition("/")
    tables.setdefault(table or "all", {})[column] = _as_column(np.asarray(array), f"{name}: {key}")
  parts = splits.ranges(split, {table: len(next(iter(t.values()))) for table, t in tables.items()}, name)
  for table, _, _ in parts:  # Unequal columns must be refused before they are cut to a range.
    Columns(f"{name} {table}", tables[table], str)
  return Columns(f"{name} {split}", select(tables, parts), describer(parts, lambda _, row: f"row {row} of {name}"))


def _read(path: str) -> dict[str, np.ndarray]:
  file = from_here(path)
  if not file.exists():
    raise UserError(f"data source arrays: no file {path}")
  try:
    with np.load(file, allow_pickle=False) as archive:
      return {key: archive[key] for key in archive.files}
  except (AttributeError, ValueError, OSError, zipfile.BadZipFile) as error:
    raise UserError(f"data source arrays: {path} is not a readable .npz file ({str(error).splitlines()[0]})") from None


def _as_column(array: np.ndarray, where: str) -> np.ndarray:
  if array.ndim == 0:
    raise UserError(f"{where} is a single value; a column has one entry an example")
  return bytes_column(array.flat).reshape(array.shape) if array.dtype.kind in "US" else array
