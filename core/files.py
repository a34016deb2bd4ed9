"""Files that appear whole or not at all, and paths as a person means them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
  """A binary file to write, which takes the place of `path` when it is complete and on disk.

  Raises:
    OSError: it cannot be written; nothing of it is left then.
  """
  # One writer a process and file; the dot keeps a half-written file out of `*.npz` and its like.
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  try:
    with part.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def from_here(path: str | os.PathLike) -> Path:
  """`path` as seen from the folder in which the person typed the command, which Bazel tells; `~` is their home."""
  return Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."), Path(path).expanduser()).absolute()
