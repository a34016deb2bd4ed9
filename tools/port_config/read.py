"""A config of big_vision from its file: the `config.json` of a workdir, or a Python file of the user's own."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import files
from core.errors import UserError
from core.recipe import load
from core.recipe.parse import plain


def config(spec: str, big_vision: str | None = None) -> dict[str, Any]:
  """Returns a config as dicts, tuples and scalars.

  Args:
    spec: FILE.json, or FILE.py with its arguments behind a colon.
    big_vision: the checkout of big_vision that a Python file imports from.

  Raises:
    UserError: no such file, or no config in it.
  """
  file, colon, arg = spec.partition(":") if ".py:" in spec else (spec, "", "")
  path = Path(files.from_here(file))
  if not path.is_file():
    raise UserError(f"no file {file!r}; give the config.json of a workdir of big_vision, or a config's FILE.py")
  found = _of_python(path, arg if colon else None, big_vision) if path.suffix == ".py" else _of_json(path)
  if not isinstance(found, Mapping):
    raise UserError(f"{file}: a config is a dict, not {type(found).__name__}")
  return dict(found)


def _of_json(path: Path) -> Any:
  try:
    return plain(json.loads(path.read_bytes()))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path} is no config.json ({str(error).splitlines()[0]})") from None


def _of_python(path: Path, arg: str | None, big_vision: str | None) -> Any:
  """Runs `get_config` of a file, as big_vision does: without an argument where none is given."""
  if big_vision is not None and not (Path(files.from_here(big_vision)) / "big_vision").is_dir():
    raise UserError(f"--big_vision: {big_vision} is no checkout of big_vision: it has no folder big_vision")
  added = [str(files.from_here(big_vision))] if big_vision else []
  sys.path[:0] = added
  try:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return plain(module.get_config() if arg is None else module.get_config(arg))
  except UserError:
    raise
  except ModuleNotFoundError as error:
    lacks = "; give --big_vision=CHECKOUT" if (error.name or "").startswith("big_vision") and not big_vision else ""
    raise UserError(f"{path}: {error}{lacks}") from None
  except (Exception, SystemExit) as error:
    raise UserError(f"{path}:{load.line_number(error, str(path))}: {load.first_line(error)}") from error
  finally:
    for each in added:
      sys.path.remove(each)
