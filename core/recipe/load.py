"""From a config file, or the `config.json` of a run, to the dict that `core.recipe.parse` reads.

    --config=projects/vit/configs/digits.py:runlocal,variant=Ti/16 --config.lr=3e-4 --config.input.batch_size=64

The file's `get_config(arg)` returns the table of hyper-parameters, a ConfigDict or a dict. What stands behind the colon
are the config's own short arguments (`core.config.parse_arg`); `--config.KEY=VALUE` then changes any single entry.
"""

import ast
import importlib.util
import json
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from core.errors import UserError
from core.recipe import words
from core.recipe.duration import UNITS
from core.recipe.parse import plain


def read(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
  """Returns the config of `spec = "FILE.py[:arg]"` with `overrides = [("lr", "0.1"), ...]` applied, as a plain dict.

  Raises:
    UserError: no such file, one that is no Python, raises or returns no table; by file and line.
  """
  file, _, arg = spec.partition(":")
  module = _module(file)
  get_config = getattr(module, "get_config", None)
  if not callable(get_config):
    raise UserError(f"config: {file!r} has no function get_config(arg)")
  config = _run(lambda: plain(get_config(arg or None)), file)
  if not isinstance(config, dict):
    raise UserError(f"config: {file}: get_config must return a ConfigDict or a dict, not {words.shown(config)}")
  return overridden(config, overrides)


def from_json(path: Any, overrides: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
  """Returns the config that a run left in its `config.json`, with `overrides` applied.

  Args:
    path: has `is_file` and `read_bytes`, a `pathlib.Path` or an `epath.Path`.
    overrides: as of `read`.

  Raises:
    UserError: no such file, or no config in it.
  """
  if not path.is_file():
    raise UserError(f"{path} is no config of a run ({'no regular file' if path.exists() else 'no such file'})")
  try:
    config = plain(json.loads(path.read_bytes()))  # Also of what an editor put a byte order mark before.
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path} is no config of a run ({first_line(error)})") from None
  if not isinstance(config, dict):
    raise UserError(f"{path} is no config of a run (it holds {words.shown(config)})")
  return overridden(config, overrides)


def overridden(config: Mapping[str, Any], overrides: Iterable[tuple[str, str]]) -> dict[str, Any]:
  """Returns a plain config with single entries changed; sections that it lacks are made.

  A value is a Python literal, or text where it is none or stands in the place of text. A duration takes the place of
  one in another unit.

  Raises:
    UserError: the path of an override goes through what is no section.
  """
  for key, text in overrides:
    config = _with(config, key.split("."), text, "config")
  return dict(config)


def _with(config: Mapping[str, Any], keys: list[str], text: str, where: str) -> dict[str, Any]:
  first, *rest = keys
  if rest:
    section = config.get(first, {})
    if not isinstance(section, Mapping):
      raise UserError(f"{where}.{first} is {words.shown(section)}: it has no entry {rest[0]!r} to set")
    return {**config, first: _with(section, rest, text, f"{where}.{first}")}
  stem, _, unit = first.rpartition("_")
  dropped = {f"{stem}_{other}" for other in UNITS} - {first} if unit in UNITS else set()
  kept = {key: value for key, value in config.items() if key not in dropped}
  return {**kept, first: _value(text, config.get(first))}


def _value(text: str, old: Any) -> Any:
  if isinstance(old, str) and text != "None":
    return text
  try:
    return plain(ast.literal_eval(text))
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text


def _module(file: str) -> ModuleType:
  if not Path(file).is_file():
    raise UserError(f"config: no file {file!r}")
  spec = importlib.util.spec_from_file_location(Path(file).stem, file)
  if spec is None or spec.loader is None:
    raise UserError(f"config: {file!r} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  _run(lambda: spec.loader.exec_module(module), file)
  return module


def _run(fn: Any, file: str) -> Any:
  """Returns `fn()`; whatever a person's code raises becomes one line that names the file and its line."""
  try:
    return fn()
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    raise UserError(f"config {file}:{line_number(error, file)}: {first_line(error)}") from error


def line_number(error: BaseException, file: str) -> int:
  """Returns the line of a person's Python file at which an error was raised, 1 where that is not known."""
  if isinstance(error, SyntaxError) and error.filename == file:
    return error.lineno or 1
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
  return lines[-1] if lines else 1


def first_line(error: BaseException) -> str:
  """Returns the kind of an error and the first line of its message."""
  message = error.msg if isinstance(error, SyntaxError) else str(error)
  return f"{type(error).__name__}: {(message.splitlines() or [''])[0]}".removesuffix(": ")


def differences(a: Any, b: Any, prefix: str = "config") -> list[str]:
  """Returns lines `"config.lr: 0.1 there, 0.2 here"` for all that differs between two plain configs."""
  if isinstance(a, Mapping) and isinstance(b, Mapping):
    lines = []
    for key in sorted({*a, *b}):
      if key not in a or key not in b:
        lines.append(f"{prefix}.{key}: {'only there' if key in a else 'only here'}")
      else:
        lines.extend(differences(a[key], b[key], f"{prefix}.{key}"))
    return lines
  return [] if a == b else [f"{prefix}: {words.shown(a)} there, {words.shown(b)} here"]
