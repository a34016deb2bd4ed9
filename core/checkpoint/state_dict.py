"""State dicts of PyTorch's world, `{"blocks.0.norm1.bias": array}`, read without PyTorch and without running code.

Read are `.safetensors` files, what `torch.save` writes (`core.checkpoint.torch_file`: `.bin`, `.pth`, `.pt`, `.tar`,
`.ckpt`), and folders as libraries save models, in one file or in shards. What training programs wrap around a model is
taken off, so that the names are the model's own:

- of `{"epoch": .., "state_dict": {..}, ..}` the first of `state_dict`, `model`, `teacher`, `student` that is there;
- `module.`, `_orig_mod.` and `model.` before every name;
- of a pair of networks the one that its authors evaluate: `teacher.` before `student.` (DINO), `base_encoder.` before
  `momentum_encoder.` (MoCo v3); then `backbone.`, without the heads that stand beside it.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from core import files
from core.checkpoint import hub, torch_file
from core.errors import UserError

Arrays = dict[str, np.ndarray]
# Arrays are read when called for: a file may hold a second network, or the state of an optimizer.
Readers = dict[str, Callable[[], np.ndarray]]

_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".ckpt")
_IN_FOLDERS = hub.WEIGHTS
_NESTED = ("state_dict", "model", "teacher", "student")
_BEFORE_ALL = ("module.", "_orig_mod.", "model.")
_BEFORE_ONE = ("teacher.", "student.", "base_encoder.", "momentum_encoder.", "backbone.")


def is_one(location: str) -> bool:
  """Returns whether a location is by its name such a file's, a local folder's, or a model's of the hub."""
  path = re.split("[?#]", location)[0] if "://" in location else location.partition("#")[0]
  if "://" in path:
    return path.endswith(_SUFFIXES) or hub.is_model(path)
  return path.endswith(_SUFFIXES) or os.path.isdir(files.from_here(path))


def read(path: Path) -> Arrays:
  """Returns the arrays of a local file or folder under the model's own names, in the types they are stored in.

  Raises:
    UserError: not there, damaged, not of this kind, or holding objects whose reading could run code.
  """
  return {name: reader() for name, reader in _unwrap(_open(path)).items()}


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
  """Returns what a file or folder holds: readers of arrays by name, perhaps nested and among other things."""
  if not os.path.isdir(path):  # Which, unlike pathlib's, answers for names that no system takes, too.
    return _open_safetensors(path) if path.suffix == ".safetensors" else torch_file.read(path)
  file = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), None)
  if file is None:
    raise UserError(f"{path}: a folder without {_IN_FOLDERS[0]} or {_IN_FOLDERS[2]}")
  if file.suffix != ".json":
    return _open(file)
  weight_map = _json(file).get("weight_map")
  if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
    raise UserError(f"{file}: has no weight_map, which tells the shards of the model")
  shards = [_open(path / name) for name in sorted(set(weight_map.values()))]
  return functools.reduce(lambda a, b: {**a, **b}, shards)


def _open_safetensors(path: Path) -> Readers:
  try:
    file = safetensors.safe_open(path, framework="numpy")
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{path}: not a .safetensors file, or a damaged one ({error})") from None
  return {name: functools.partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _unwrap(held: Mapping[str, Any]) -> Readers:
  while nested := next((held[key] for key in _NESTED if isinstance(held.get(key), Mapping)), None):
    held = nested
  readers = {name: value for name, value in held.items() if isinstance(name, str) and callable(value)}
  while prefix := _prefix(readers):
    readers = {name.removeprefix(prefix): reader for name, reader in readers.items() if name.startswith(prefix)}
  return readers


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
