"""The files and folders that a source's arguments name."""

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
    UserError: there is no such file, or the path is a folder's.
  """
  file = _located(path, where, folder)
  if file.is_dir():
    raise UserError(f"{where}: {path} is a folder; a file is needed")
  if not file.is_file():
    raise UserError(f"{where}: no file {path if folder is None else file}")
  return file


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
