"""Published weights in and out: `.npz` files with one array a parameter, its path joined by `/`.

Transformer/encoder_norm/bias           a model that has parameters alone
params/..., batch_stats/...             one with other Flax collections beside them

A checkpoint of big_vision is read in the place of such a file (`core.checkpoint.big_vision`).
"""

import collections
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from core import files, trees
from core.checkpoint import big_vision, remote, values
from core.errors import UserError

# The host of a URL may end as a file does, and have a port behind a colon.
_SPEC = re.compile(
  r"((?:\w+://[^/]*/|(?!\w+://)).*\.(?:npz|safetensors|bin|pth|pt|tar|ckpt)(?:\?[^:#]*)?)"
  r"(#sha256=\w+)?:([^:#&=?]*)(#sha256=.*)?"
)
_ROOTS = ("params/", "opt/target/")  # Where a file may keep the parameters, newest form first; else at its root.
_BFLOAT16 = np.dtype("V2")  # How NumPy's format stores what it has no name for.


def load_params(spec: str) -> dict[str, Any]:
  """Returns the parameters of an `.npz` file, as a nested dict of NumPy arrays.

  Args:
    spec: `LOCATION.npz`, or `LOCATION.npz:SUBTREE` for a part, `two_towers.npz:img` say. Only that part is read. The
      location is a path or a URL, with or without a checksum: see `core.checkpoint.remote.fetch`. `checkpoint.bv` and
      `checkpoint.bv:SUBTREE` likewise, a path or one in a bucket: see `core.checkpoint.big_vision`.

  Raises:
    UserError: no such file, no `.npz` or a damaged one, one that holds pickled objects, a name twice, or numbers that
      no model can hold (`values.check`); no such subtree; a URL that cannot be had.
  """
  return _open(spec, _decode_all)


def load_variables(spec: str) -> dict[str, Any]:
  """Returns all collections of an `.npz` file, `{"params": .., "batch_stats": ..}`, as nested dicts of NumPy arrays.

  A file of parameters alone gives `{"params": ..}`.

  Args:
    spec: as for `load_params`. Of a part, `two_towers.npz:img` say, each collection is the part that it has of it.

  Raises:
    UserError: as `load_params`.
  """
  _, subtree = split(spec)

  def take(arrays: Any, stored: dict[str, str], where: str) -> dict[str, Any]:
    variables = {"params": _decode_all(arrays, stored, where)}
    for collection in _beside_params(list(arrays)):
      if beside := _below(f"{collection}/{subtree}/" if subtree else f"{collection}/", list(arrays)):
        variables[collection] = _decode_all(arrays, beside, where)
    return variables

  return _open(spec, take)


def names(spec: str) -> list[str]:
  """Returns the names of the parameters that `load_params` would give, flat; no array is read.

  Raises:
    UserError: as `load_params`.
  """

  def take(arrays: Any, stored: dict[str, str], where: str) -> list[str]:
    return list(stored)

  return _open(spec, take)


def load_some(spec: str, wanted: Collection[str]) -> dict[str, np.ndarray]:
  """Returns those of the parameters that have one of these names and are there, by name; no other array is read.

  Raises:
    UserError: as `load_params`.
  """

  def take(arrays: Any, stored: dict[str, str], where: str) -> dict[str, np.ndarray]:
    return _decode_flat(arrays, {name: place for name, place in stored.items() if name in wanted}, where)

  return _open(spec, take)


def load_state(spec: str) -> tuple[str, dict[str, np.ndarray]]:
  """Returns what to call a file, and all that it holds but a clock, by the names there: `params/..`, `opt/..`.

  Raises:
    UserError: as `load_params`.
  """

  def take(arrays: Any, stored: dict[str, str], where: str) -> tuple[str, dict[str, np.ndarray]]:
    return where, _decode_flat(arrays, {name: name for name in arrays if not name.startswith("chrono/")}, where)

  return _open(spec, take)


def load_grids(spec: str) -> dict[str, tuple[int, int]]:
  """Returns the grids (rows, columns) of patches that a file's note tells, by the name of what is bound to them.

  Mostly none; none of a file that is not there or damaged either, which `load_params` refuses.

  Raises:
    UserError: a note that is damaged; a URL that cannot be had.
  """
  location, subtree = split(spec)
  if big_vision.split(location):
    return {}
  prefix = f"{subtree}/" if subtree else ""
  path = remote.fetch(location)
  try:
    with zipfile.ZipFile(path) as archive:
      comment = archive.comment
  except (zipfile.BadZipFile, OSError):
    return {}
  try:
    note = json.loads(comment) if comment.startswith(b"{") else {}
    noted = {str(name): (int(rows), int(columns)) for name, (rows, columns) in note.get("grids", {}).items()}
  except (ValueError, TypeError, AttributeError):
    raise UserError(f"{remote.shown(location)}: its note of grids is damaged") from None
  return {name.removeprefix(prefix): grid for name, grid in noted.items() if name.startswith(prefix)}


def split(spec: str) -> tuple[str, str]:
  """Returns `("LOCATION.npz", "img")` of `"LOCATION.npz:img"`; an empty subtree where none is given.

  A URL's query and a checksum belong to the location: `https://HOST/x.npz?v=2#sha256=HEX:img` has the subtree `img`,
  and so has `https://HOST/x.npz:img#sha256=HEX`. Of PyTorch's files it is an entry, `x.pt:state_dict`
  (`core.checkpoint.state_dict`).
  """
  if of_folder := big_vision.split(spec):
    return of_folder
  match = _SPEC.fullmatch(spec)
  return (match[1] + (match[2] or match[4] or ""), match[3].strip("/")) if match else (spec, "")


def save_params(
  path: str | os.PathLike, params: trees.PyTree, *, grids: Mapping[str, Sequence[int]] | None = None
) -> None:
  """Writes `params` to an `.npz` file that `load_params` reads; equal parameters give equal bytes.

  The file appears whole or not at all, and an older one stays until then. Parent folders are made.

  Args:
    path: the file, on disk or in a bucket.
    params: a tree of arrays.
    grids: (rows, columns) of what is bound to a grid of patches, by name. Noted in the archive's comment, which other
      readers pass over.

  Raises:
    UserError: the file cannot be written (no permission, disk full, ...), or an array's type has no name in it.
  """
  place = files.from_here(path)
  if not place.name:
    raise UserError(f"{place}: names no file")
  try:
    files.make_folder(place.parent)
    with files.replacing(place) as file:
      _write_npz(file, dict(trees.flatten_with_names(params)), grids, place)
  except OSError as e:
    raise UserError(f"{place}: cannot be written ({files.reason(e)})") from None


def save_variables(
  path: str | os.PathLike, variables: Mapping[str, trees.PyTree], *, grids: Mapping[str, Sequence[int]] | None = None
) -> None:
  """Writes parameters and what Flax collections stand beside them to an `.npz` file that `load_variables` reads.

  Without other collections the file is that of `save_params`; with them, names begin with the collection's.

  Args:
    path: as for `save_params`.
    variables: `{"params": .., "batch_stats": ..}`.
    grids: as for `save_params`, by the names of the parameters.

  Raises:
    UserError: as `save_params`.
  """
  held = {name: tree for name, tree in variables.items() if name == "params" or jax.tree.leaves(tree)}
  save_params(path, held["params"] if set(held) == {"params"} else held, grids=grids)


def _open(spec: str, take: Callable[[Any, dict[str, str], str], Any]) -> Any:
  """Returns what `take` finds in a file.

  `take` gets the arrays, `{name in the tree: name in the file}`, and what errors call the file.
  """
  location, subtree = split(spec)
  if big_vision.split(location):
    checkpoint = big_vision.Checkpoint(location)
    where = str(checkpoint.path)
    return take(checkpoint, _select(list(checkpoint), subtree, where), where)
  path = remote.fetch(location)
  if "://" not in location:
    return _read(path, subtree, take, str(path), "")
  return _read(path, subtree, take, remote.shown(location), f"; remove its copy {path} to fetch it anew")


def _read(path: Path, subtree: str, take: Callable[..., Any], where: str, remedy: str) -> Any:
  """Does as `_open`, of a file that errors call `where`; `remedy` ends the line of one that is damaged."""
  try:
    with path.open("rb") as file:
      if not zipfile.is_zipfile(file):  # np.load takes all it does not know for a pickle, and says so.
        raise UserError(f"{where}: not an .npz file, or a truncated one{remedy}")
      file.seek(0)
      with np.load(file, allow_pickle=False) as arrays:
        return take(arrays, _select(_names(arrays, where), subtree, where), where)
  except FileNotFoundError:
    raise UserError(f"{where}: no such file") from None
  except MemoryError as e:
    raise UserError(f"{where}: too large for this machine's memory, or damaged ({_one_line(e)})") from None
  except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OverflowError, RuntimeError) as e:
    if "allow_pickle" in str(e):
      raise UserError(f"{where}: holds pickled objects, which could run code; save plain arrays instead") from None
    raise UserError(f"{where}: a damaged .npz file ({_one_line(e)}){remedy}") from None
  except OSError as e:
    raise UserError(f"{where}: cannot be read ({e.strerror or _one_line(e)})") from None


def _names(arrays: Any, where: str) -> list[str]:
  """Returns the names in a file; NumPy would give the last array of a name that two have, other readers the first."""
  stored = list(arrays)
  if repeated := [name for name, count in collections.Counter(stored).items() if count > 1]:
    raise UserError(f"{where}: holds {repeated[0]} {stored.count(repeated[0])} times; a name must stand for one array")
  return stored


def _select(stored: list[str], subtree: str, where: str) -> dict[str, str]:
  """Returns `{name in the tree: name in the file}` of the parameters under `subtree`."""
  root = next((root for root in _ROOTS if any(name.startswith(root) for name in stored)), "")
  names = _below(root, stored)
  if not names:
    raise UserError(f"{where}: holds no parameters")
  if not subtree:
    return names
  # What stands beside the parameters (`state`, say) is named from the root of the file.
  below = _below(f"{root}{subtree}/", stored) or _below(f"{subtree}/", stored)
  if not below:
    there = sorted({name.partition("/")[0] for name in names if "/" in name})
    raise UserError(f"{where}: no subtree {subtree!r} (there are: {', '.join(there)})")
  return below


def _beside_params(stored: list[str]) -> list[str]:
  """Returns the collections of a file that stand beside `params/`; big_vision's optimizer and clock are none."""
  folders = {name.partition("/")[0] for name in stored if "/" in name}
  return sorted(folders - {"params", "opt", "chrono"}) if "params" in folders else []


def _below(prefix: str, stored: list[str]) -> dict[str, str]:
  return {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}


def _decode(array: Any, where: str, stored: str) -> np.ndarray:
  if not isinstance(array, np.ndarray):  # NumPy hands other files of a zip archive over as bytes.
    raise UserError(f"{where}: not an .npz file: {stored} in it is no array")
  return values.check(array.view(ml_dtypes.bfloat16) if array.dtype == _BFLOAT16 else array, stored, where)


def _decode_flat(arrays: Any, stored: dict[str, str], where: str) -> dict[str, np.ndarray]:
  if isinstance(arrays, big_vision.Checkpoint):
    arrays = arrays.read(stored.values())
  return {name: _decode(arrays[place], where, place) for name, place in stored.items()}


def _decode_all(arrays: Any, stored: dict[str, str], where: str) -> dict[str, Any]:
  return _nested(_decode_flat(arrays, stored, where), where)


def _nested(named: dict[str, np.ndarray], where: str) -> dict[str, Any]:
  folders = {name[:end] for name in named for end in range(len(name)) if name[end] == "/"}
  if both := sorted(folders & named.keys()):
    raise UserError(f"{where}: {both[0]} is both an array and a folder of arrays")
  return trees.from_names(named)


def _encode(leaf: Any, name: str, where: Path) -> np.ndarray:
  array = np.asarray(jax.device_get(leaf))
  if array.dtype == ml_dtypes.bfloat16:
    return array.view(_BFLOAT16)
  if array.dtype.isbuiltin == 2:  # Not NumPy's own: it would be written as bytes, and no file tells of what.
    raise UserError(f"{where}: {name} is of the type {array.dtype}, for which .npz files have no name")
  return array


def _write_npz(file: Any, named: dict[str, Any], grids: Mapping[str, Sequence[int]] | None, where: Path) -> None:
  # np.savez would stamp each entry with the time of day.
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
    if grids:
      archive.comment = json.dumps({"grids": grids}).encode()
    for name, leaf in named.items():
      with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, _encode(leaf, name, where), allow_pickle=False)


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__
