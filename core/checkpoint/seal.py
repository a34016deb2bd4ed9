"""A checkpoint's seal, `integrity.json`: size and CRC-32 of every file, shape and dtype of every array."""

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
    file.write(json.dumps(content, indent=1).encode())


def arrays(folder: epath.Path) -> dict[str, list] | None:
  """Returns the shapes and dtypes of a sealed checkpoint, `{name: [shape, dtype]}`; None where the seal is no good."""
  return _read(folder).get("arrays")


def fault(folder: epath.Path) -> str | None:
  """Returns what differs between the files of a checkpoint and their seal, in a few words; None where all is well."""
  sealed = _read(folder).get("files")
  if not isinstance(sealed, dict):
    return f"{NAME} is missing or unreadable"
  try:
    found = _checksums(folder)
  except OSError as error:
    return f"it cannot be read: {files.reason(error)}"
  for name, (size, crc) in sealed.items():
    if name not in found:
      return f"{name} is missing"
    if found[name][0] != size:
      return f"{name} has {found[name][0]:,} of {size:,} bytes"
    if found[name][1] != crc:
      return f"{name} has changed"
  return None


def _read(folder: epath.Path) -> dict[str, Any]:
  try:
    content = json.loads(files.read_bytes(folder / NAME) or b"")
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _checksums(folder: epath.Path) -> dict[str, list[int]]:
  """Returns `{relative file: [bytes, CRC-32]}` of all files under `folder` that the seal vouches for."""
  sealed = [path for path in files.below(folder) if path.name not in _NOT_SEALED]
  with ThreadPoolExecutor() as pool:  # zlib and file reads release the interpreter's lock.
    return {str(path.relative_to(folder)): sums for path, sums in zip(sealed, pool.map(_checksum, sealed), strict=True)}


def _checksum(path: epath.Path) -> list[int]:
  size, crc = 0, 0
  with files.as_os_error(path), path.open("rb") as stream:
    while block := stream.read(_BLOCK):
      size, crc = size + len(block), zlib.crc32(block, crc)
  return [size, crc]
