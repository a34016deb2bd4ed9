"""A checkpoint's seal, `integrity.json`: its step, size and CRC-32 of every file, shape and dtype of every array.

    {"step": 2, "arrays": {"params/w": [[64, 10], "float32"]}, "files": {"_METADATA": [2396, 1811]}, "crc": 523}

`crc` is the CRC-32 of the rest, so that damage to the seal itself is seen.
"""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from core import files

NAME = "integrity.json"

# Written by Orbax around the rename, and not needed to read the arrays.
_NOT_SEALED = (NAME, "_CHECKPOINT_METADATA", "commit_success.txt")
_BLOCK = 1 << 20


def write(folder: epath.Path, step: int, arrays: dict[str, list]) -> None:
  """Seals the files that are in `folder` now.

  Args:
    folder: of the checkpoint.
    step: of the state in it.
    arrays: `{name: [shape, dtype]}` of the state.

  Raises:
    OSError: it cannot be read or written.
  """
  content = {"step": step, "arrays": arrays, "files": _checksums(folder)}
  with files.replacing(folder / NAME) as file:
    file.write(json.dumps({**content, "crc": _crc(content)}, indent=1).encode())


def arrays(folder: epath.Path) -> dict[str, list] | None:
  """Returns the shapes and dtypes of a sealed checkpoint, `{name: [shape, dtype]}`; None where the seal is no good."""
  return (_read(folder) or {}).get("arrays")


def step(folder: epath.Path) -> int | None:
  """Returns the step that a folder's seal is of, whatever the folder is called; None where the seal is no good."""
  return (_read(folder) or {}).get("step")


def fault(folder: epath.Path, step: int) -> str | None:
  """Returns why a folder is no whole checkpoint of a step, in a few words; None where all is well.

  Args:
    folder: of the checkpoint.
    step: that its name says.
  """
  sealed = _read(folder)
  if sealed is None:
    return f"{NAME} is missing or unreadable"
  if sealed["step"] != step:
    return f"its seal is of step {sealed['step']}"
  try:
    found = _checksums(folder)
  except OSError as error:
    return f"it cannot be read: {files.reason(error)}"
  for name, (size, crc) in sealed["files"].items():
    if name not in found:
      return f"{name} is missing"
    if found[name][0] != size:
      return f"{name} has {found[name][0]:,} of {size:,} bytes"
    if found[name][1] != crc:
      return f"{name} has changed"
  return None


def _read(folder: epath.Path) -> dict[str, Any] | None:
  """Returns what `write` wrote, or None where that is not what is there."""
  try:
    content = json.loads(files.read_bytes(folder / NAME) or b"")
    whole = content.pop("crc", None) in (None, _crc(content))  # Older seals have none.
    is_one = isinstance(content["step"], int) and all(map(_is_array, content["arrays"].values()))
    return content if whole and is_one and all(map(_is_file, content["files"].values())) else None
  except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
    return None


def _is_array(value: Any) -> bool:
  shape, dtype = value
  return isinstance(dtype, str) and all(isinstance(size, int) for size in shape)


def _is_file(value: Any) -> bool:
  size, crc = value
  return isinstance(size, int) and isinstance(crc, int)


def _crc(content: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksums(folder: epath.Path) -> dict[str, list[int]]:
  """Returns `{relative file: [bytes, CRC-32]}` of all files under `folder` that the seal vouches for."""
  sealed = [path for path in files.below(folder) if path.name not in _NOT_SEALED]
  with ThreadPoolExecutor() as pool:  # zlib and file reads release the interpreter's lock.
    return {str(path.relative_to(folder)): sums for path, sums in zip(sealed, pool.map(_checksum, sealed), strict=True)}


def _checksum(path: epath.Path) -> list[int]:
  size, crc = 0, 0
  files.refuse_irregular(path)
  with files.as_os_error(path), path.open("rb") as stream:
    while block := stream.read(_BLOCK):
      size, crc = size + len(block), zlib.crc32(block, crc)
  return [size, crc]
