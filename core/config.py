"""What a config file is written with: its own short arguments, and choices among its tables.

    --config=projects/vit/configs/digits.py:runlocal,variant=Ti/16

A config file's `get_config(arg)` returns the run's table of hyper-parameters, a `ConfigDict`. `core.recipe` reads it.
"""

import ast
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from core.errors import UserError, nearest


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Reads a config's own arguments, `"runlocal,variant=B/16"`, each of the type of its default.

  Args:
    arg: what stood behind the colon of `--config=FILE.py:ARG`; a bare name sets a flag to True.
    **defaults: every argument that the config has, with its default value.

  Raises:
    UserError: an unknown argument or a value of the wrong type.
  """
  values = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, _, text = part.partition("=")
    if name not in defaults:
      raise UserError(f"config argument {name!r} is unknown{nearest(name, defaults)}")
    values[name] = _as_type(f"config argument {name}", text or "True", defaults[name])
  return ConfigDict(values)


def choose(name: str, value: str, table: Mapping[str, Any]) -> Any:
  """Returns `table[value]` for a config's argument `name`.

  Raises:
    UserError: the table has no such entry.
  """
  if value not in table:
    raise UserError(f"config argument {name}={value!r} is unknown{nearest(value, table)}")
  return table[value]


def _as_type(where: str, text: str, default: Any) -> Any:
  """Returns `text` as a value of the type of `default`; an int where a float stands is a float."""
  value = text if isinstance(default, str) else _literal(text)
  if default is None or value is None:
    return value
  if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(default, list | tuple) and isinstance(value, list | tuple):
    return type(default)(value)
  if type(value) is not type(default):
    words = {int: "an integer", float: "a number", str: "a string", bool: "True or False"}
    example = f" like {default!r}" if isinstance(default, int | float | str) else ""
    raise UserError(f"{where} must be {words.get(type(default), f'a {type(default).__name__}')}{example}, got {text!r}")
  return value


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text
