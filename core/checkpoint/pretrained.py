"""Published weights in and out: `.npz` files with one array a parameter, its path joined by `/`."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from core import files, trees
from core.errors import UserError

_ROOTS = ("params/", "opt/target/")  # Where a file may keep the parameters, newest form first; else at its root.
_BFLOAT16 = np.dtype("V2")  # How NumPy's format stores what it has no name for.


def load_params(spec: str) -> dict[str, Any]:
  """The parameters of a local `.npz` file, as a nested dict of NumPy arrays.

  Args:
    spec: `PATH.npz`, or `PATH.npz:SUBTREE` for a part, `two_towers.npz:img` say. Only that part is read.

  Raises:
    UserError: no such file, no `.npz` or a damaged one, one that holds pickled objects, or no such subtree.
  """
  path, subtree = _split(spec)
  try:
    with open(path, "rb") as file:
      if not zipfile.is_zipfile(file):  # np.load takes all it does not know for a pickle, and says so.
        raise UserError(f"{path}: not an .npz file, or a truncated one")
      file.seek(0)
      with np.load(file, allow_pickle=False) as arrays:
        names = _select(list(arrays), subtree, path)
        return trees.from_names({name: _decode(arrays[stored], path, stored) for name, stored in names.items()})
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as e:
    if "allow_pickle" in str(e):
      raise UserError(f"{path}: holds pickled objects, which could run code; save plain arrays instead") from None
    raise UserError(f"{path}: a damaged .npz file ({_one_line(e)})") from None
  except OSError as e:
    raise UserError(f"{path}: cannot be read ({e.strerror or _one_line(e)})") from None


def save_params(path: str | os.PathLike, params: trees.PyTree) -> None:
  """Writes `params` to an `.npz` file that `load_params` reads; equal parameters give equal bytes.

  The file appears whole or not at all, and an older one stays until then. Parent folders are made.

  Raises:
    UserError: the file cannot be written (no permission, disk full, ...).
  """
  path = Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
      _write_npz(file, dict(trees.flatten_with_names(params)))
  except OSError as e:
    raise UserError(f"{path}: cannot be written ({e.strerror or _one_line(e)})") from None


def _split(spec: str) -> tuple[str, str]:
  head, extension, subtree = spec.rpartition(".npz:")
  path, subtree = (f"{head}.npz", subtree.strip("/")) if extension else (spec, "")
  if "://" in path:
    raise UserError(f"{path}: only local files are read; download it and give its path")
  return path, subtree


def _select(stored: list[str], subtree: str, path: str) -> dict[str, str]:
  """`{name in the tree: name in the file}` of the parameters under `subtree`."""
  root = next((root for root in _ROOTS if any(name.startswith(root) for name in stored)), "")
  names = {name.removeprefix(root): name for name in stored if name.startswith(root)}
  if not names:
    raise UserError(f"{path}: holds no parameters")
  if not subtree:
    return names
  below = {name.removeprefix(f"{subtree}/"): file for name, file in names.items() if name.startswith(f"{subtree}/")}
  if not below:
    there = sorted({name.partition("/")[0] for name in names if "/" in name})
    raise UserError(f"{path}: no subtree {subtree!r} (there are: {', '.join(there)})")
  return below


def _decode(array: Any, path: str, stored: str) -> np.ndarray:
  if not isinstance(array, np.ndarray):  # NumPy hands other files of a zip archive over as bytes.
    raise UserError(f"{path}: not an .npz file: {stored} in it is no array")
  return array.view(ml_dtypes.bfloat16) if array.dtype == _BFLOAT16 else array


def _encode(leaf: Any) -> np.ndarray:
  array = np.asarray(jax.device_get(leaf))
  return array.view(_BFLOAT16) if array.dtype == ml_dtypes.bfloat16 else array


def _write_npz(file: Any, named: dict[str, Any]) -> None:
  # np.savez would stamp each entry with the time of day.
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
    for name, leaf in named.items():
      with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, _encode(leaf), allow_pickle=False)


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__
