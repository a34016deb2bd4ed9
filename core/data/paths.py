"""The files and folders that a source's arguments name."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError, naming
from core.files import from_here
from core.recipe import words


def existing_file(path: str, where: str, folder: Path | None = None) -> Path:
  """Returns a file that is there.

  Args:
    path: as a config has it; relative to `folder`, or to where the command was typed.
    where: its path in the config, for messages.
    folder: see `path`.

  Raises:
    UserError: there is no such file, or the path is that of a folder, pipe, socket or device.
  """
  file = _located(path, where, folder)
  if file.is_dir():
    raise UserError(f"{where}: {path} is a folder; a file is needed")
  if not file.is_file():
    kind = "no regular file" if file.exists() else "no file"
    raise UserError(f"{where}: {kind} {path if folder is None else file}")
  return file


def first_irregular(paths: Sequence[str]) -> int | None:
  """Returns which of many paths is the first of something else than a regular file; None where none is.

  Reading a pipe waits for its other end. What is not there, or cannot be looked at, is left to its reader.
  """
  rows: dict[str, dict[str, int]] = defaultdict(dict)
  for row, path in enumerate(paths):
    folder, _, name = path.removeprefix("file://").rpartition("/")
    rows[folder].setdefault(name, row)
  found = []
  for folder, named in rows.items():  # Looking at a million files one by one takes minutes where they are remote.
    with contextlib.suppress(OSError, ValueError), os.scandir(folder or "/") as entries:
      others = [entry for entry in entries if entry.name in named and not entry.is_file(follow_symlinks=False)]
      found += [named[each.name] for each in others if os.path.exists(each.path) and not os.path.isfile(each.path)]
  return min(found, default=None)


def existing_folder(path: str, where: str) -> Path:
  """Returns a folder that is there.

  Raises:
    UserError: there is no such folder, or the path is a file's.
  """
  folder = _located(path, where, None)
  if not folder.is_dir():
    line = f"{path} is a file; a folder is needed" if folder.exists() else f"no folder {path}"
    raise UserError(f"{where}: {line}")
  return folder


def _located(path: str, where: str, folder: Path | None) -> Path:
  try:
    with naming(where):
      found = from_here(path) if folder is None else folder / Path(path).expanduser()
    found.stat()
  except FileNotFoundError:
    return found
  except (OSError, ValueError, RuntimeError) as error:  # Too long, not to be read, no text of files, no such home.
    reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{where}: {words.shown(path)} cannot be opened ({reason})") from None
  return found
