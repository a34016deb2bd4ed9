"""State dicts of PyTorch's world, `{"blocks.0.norm1.bias": array}`, read without PyTorch and without running code.

Read are `.safetensors` files, what `torch.save` writes (`core.checkpoint.torch_file`: `.bin`, `.pth`, `.pt`, `.tar`,
`.ckpt`), and folders as libraries save models, in one file or in shards. What training programs wrap around a model is
taken off, so that the names are the model's own:

- of `{"epoch": .., "state_dict": {..}, ..}` the entry that the location names (`x.pt:state_dict`), else the first of
  `state_dict_ema`, `model_ema`, `state_dict`, `model`, `teacher`, `student` that is there: averaged weights before raw
  ones, as timm takes them, which a line tells;
- `module.`, `_orig_mod.` and `model.` before every name;
- of a pair of networks the one that its authors evaluate: `teacher.` before `student.` (DINO), `base_encoder.` before
  `momentum_encoder.` (MoCo v3); then `backbone.`, without the heads that stand beside it.
"""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import safetensors

from core import files
from core.checkpoint import big_vision, hub, pretrained, remote, torch_file, values
from core.errors import UserError, nearest
from core.live import Line

Arrays = dict[str, np.ndarray]


class _Stored(Protocol):
  """An array in a file. It is read when called for: a file may hold a second network, or the state of an optimizer."""

  def read(self) -> np.ndarray:
    """Returns the array; raises `values.UnreadError` where it is of a kind that is not read."""


_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".ckpt")
_IN_FOLDERS = hub.WEIGHTS
_FLOAT8 = {
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
  "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
_AVERAGED = ("state_dict_ema", "model_ema")
_RAW = ("state_dict", "model", "teacher", "student")
_WRAPPED = (*_AVERAGED, *_RAW)
_BEFORE_ALL = ("module.", "_orig_mod.", "model.")
_BEFORE_ONE = ("teacher.", "student.", "base_encoder.", "momentum_encoder.", "backbone.")


def is_one(location: str) -> bool:
  """Returns whether a location is by its name such a file's, a local folder's, or a model's of the hub."""
  if big_vision.split(location):
    return False
  location = pretrained.split(location)[0]
  path = re.split("[?#]", location)[0] if "://" in location else location.partition("#")[0]
  if "://" in path:
    return path.endswith(_SUFFIXES) or hub.is_model(path)
  return path.endswith(_SUFFIXES) or os.path.isdir(files.from_here(path))


def read(path: Path, entry: str = "") -> Arrays:
  """Returns the arrays of a local file or folder under the model's own names, in the types they are stored in.

  Args:
    path: of it.
    entry: in which of a file's entries the model lies; "" chooses as the module's docstring tells.

  Raises:
    UserError: not there, damaged, not of this kind, without that entry, or holding objects whose reading could run
      code; an array that no model can hold (`values.check`), or of a kind that is not read.
  """
  held = _entry(_open(path), entry, path) if entry else _open(path)
  averaged, raw = _nested(held, _AVERAGED), _nested(held, _RAW)
  if averaged:
    remedy = f"; {path.name}:{raw} names those" if raw and not os.path.isdir(path) else ""
    Line(sys.stderr).say(f"{path.name}: its averaged weights are read ({averaged}), not the raw ones{remedy}")
  return {name: _array(stored, name, path) for name, stored in _unwrap(held, path).items()}


def _array(stored: _Stored, name: str, path: Path) -> np.ndarray:
  try:
    return values.check(stored.read(), name, path)
  except values.UnreadError as error:
    raise UserError(f"{path}: {name} is {error}, which is not read") from None


def read_config(path: Path) -> dict[str, Any]:
  """Returns the `config.json` that came with a file or folder, where libraries put it; `{}` without one.

  Raises:
    UserError: it is no JSON object.
  """
  folder = path if os.path.isdir(path) else path.parent if path.name in _IN_FOLDERS else None
  if folder is None or not (file := folder / "config.json").is_file():
    return {}
  return _json(file)


def _open(path: Path) -> Mapping[str, Any]:
  """Returns what a file or folder holds: arrays in it by name, perhaps nested and among other things."""
  if not os.path.isdir(path):  # Which, unlike pathlib's, answers for names that no system takes, too.
    return _open_file(path)
  file = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
  if file is None:
    raise UserError(f"{path}: a folder without {_IN_FOLDERS[0]} or {_IN_FOLDERS[2]}")
  return _open_shards(file) if file.suffix == ".json" else _open_file(file)


def _open_file(path: Path) -> Mapping[str, Any]:
  remote.refuse_irregular(path)  # As a shard or a file in a folder may be one.
  return _open_safetensors(path) if path.suffix == ".safetensors" else torch_file.read(path)


def _open_shards(index: Path) -> Mapping[str, Any]:
  weight_map = _json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
    raise UserError(f"{index}: has no weight_map, which tells the shards of the model")
  shards = {name: _open_file(index.parent / name) for name in sorted(set(weight_map.values()))}
  found = {name: stored for shard in shards.values() for name, stored in shard.items()}
  # Of what two shards hold, the map tells which it is.
  mapped = {name: shards[file][name] for name, file in weight_map.items() if name in shards[file]}
  return found | mapped


def _open_safetensors(path: Path) -> dict[str, _Stored]:
  try:
    file = safetensors.safe_open(path, framework="numpy")
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{path}: not a .safetensors file, or a damaged one ({error})") from None
  return {name: _Safetensor(path, file, name) for name in file.keys()}  # noqa: SIM118 (no mapping)


@dataclasses.dataclass(frozen=True)
class _Safetensor:
  """An array of a `.safetensors` file, open as `file`, which has checked the places of all."""

  path: Path
  file: Any
  name: str

  def read(self) -> np.ndarray:
    place = self.file.get_slice(self.name)
    dtype = place.get_dtype()
    if dtype in _FLOAT8:  # NumPy, for which the library reads, has no such types.
      return np.frombuffer(self._bytes(), np.uint8).view(_FLOAT8[dtype]).reshape(place.get_shape())
    if dtype in ("F4", "F6_E2M3", "F6_E3M2"):
      raise values.UnreadError(f"an array of the type {dtype}")
    return self.file.get_tensor(self.name)

  def _bytes(self) -> bytes:
    with self.path.open("rb") as file:
      header_size = int.from_bytes(file.read(8), "little")
      start, end = json.loads(file.read(header_size))[self.name]["data_offsets"]
      file.seek(8 + header_size + start)
      return file.read(end - start)


def _entry(held: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
  entries = [key for key, value in held.items() if isinstance(key, str) and isinstance(value, Mapping)]
  if name not in entries:
    known = nearest(name, entries) if entries else ": it has none, only arrays"
    raise UserError(f"{path}: holds no entry {name!r}{known}")
  return held[name]


def _nested(held: Mapping[str, Any], names: Sequence[str]) -> str | None:
  """Returns the first of some names under which entries are held, and no array; None where there is none."""
  return next((name for name in names if isinstance(held.get(name), Mapping)), None)


def _unwrap(held: Mapping[str, Any], path: Path) -> dict[str, _Stored]:
  entered: list[Mapping[str, Any]] = []
  while key := _nested(held, _WRAPPED):
    entered.append(held)
    held = held[key]
    if any(held is each for each in entered):
      raise UserError(f"{path}: what it holds under {' or '.join(_WRAPPED)} leads back to itself")
  arrays = {name: value for name, value in held.items() if isinstance(name, str) and hasattr(value, "read")}
  arrays.pop("n_averaged", None)  # What PyTorch's AveragedModel counts, beside its `module.`
  while prefix := _prefix(arrays):
    arrays = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
  return arrays


def _prefix(names: Iterable[str]) -> str | None:
  """Returns a wrapper's prefix that some of the names have, to be taken off; None when none is left."""
  names = list(names)
  for prefix in _BEFORE_ALL:
    if names and all(name.startswith(prefix) for name in names):
      return prefix
  return next((prefix for prefix in _BEFORE_ONE if any(name.startswith(prefix) for name in names)), None)


def _json(file: Path) -> dict[str, Any]:
  try:
    content = json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{file}: not readable as JSON ({error})") from None
  if not isinstance(content, dict):
    raise UserError(f"{file}: must hold a JSON object")
  return content
