"""A recipe as a config again: what a workdir keeps, what `--print_config` prints; `parse` reads it back unchanged."""

import dataclasses
import json
import types as builtin_types
import typing
from typing import Any

from core.recipe import annotations
from core.recipe.duration import Duration
from core.recipe.types import OneOf


def to_config(recipe: Any) -> dict[str, Any]:
  """Returns the dict, of JSON's types, that `parse(type(recipe), ...)` reads as `recipe`; defaults stand in it, too."""
  of_fields = annotations.hints(type(recipe))
  config: dict[str, Any] = {}
  for field in dataclasses.fields(recipe):
    value = getattr(recipe, field.name)
    if field.name == "extra" and hasattr(recipe, "extra_keys"):
      of_extra = recipe.extra_keys({**config, **value})
      config |= {key: _written(each, of_extra.get(key)) for key, each in value.items()}
    elif not annotations.is_key(field):
      continue
    elif isinstance(value, Duration):
      config[f"{field.name}_{value.unit}"] = _number(value.value)
    elif not annotations.is_duration(of_fields[field.name]):
      config[field.name] = _written(value, of_fields[field.name])
  return config


def to_json(recipe: Any) -> str:
  """Returns the config as indented JSON, keys sorted."""
  return json.dumps(to_config(recipe), indent=2, sort_keys=True)


def _written(value: Any, annotation: Any) -> Any:
  if dataclasses.is_dataclass(value):
    name = _name_of(value, annotation)
    return {**name, **to_config(value)}
  if isinstance(value, tuple | list):
    of_items = _items(annotation, len(value))
    return [_written(each, of) for each, of in zip(value, of_items)]
  if isinstance(value, dict):
    of_values = next((typing.get_args(m)[1] for m in _members(annotation) if typing.get_origin(m) is dict), None)
    return {key: _written(each, of_values) for key, each in value.items()}
  return _number(value) if isinstance(value, float) else value


def _number(value: float) -> float | int:
  """Returns a whole number as an int: 90 epochs, not 90.0, as a person writes it."""
  return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def _members(annotation: Any) -> list[Any]:
  """Returns the alternatives of an annotation, each without its markers."""
  base, _ = annotations.split(annotation)
  if typing.get_origin(base) in (typing.Union, builtin_types.UnionType):
    return [inner for member in typing.get_args(base) for inner in _members(member)]
  return [base]


def _items(annotation: Any, count: int) -> list[Any]:
  for member in _members(annotation):
    if typing.get_origin(member) is tuple:
      args = typing.get_args(member)
      if len(args) == 2 and args[1] is Ellipsis:
        return [args[0]] * count
      if len(args) == count:
        return list(args)
  return [None] * count


def _markers(annotation: Any) -> list[OneOf]:
  base, markers = annotations.split(annotation)
  inner = typing.get_args(base) if typing.get_origin(base) in (typing.Union, builtin_types.UnionType) else ()
  return [*(m for m in markers if isinstance(m, OneOf)), *(m for each in inner for m in _markers(each))]


def _name_of(value: Any, annotation: Any) -> dict[str, str]:
  """Returns `{"source": "tfds"}` for a dataclass that a config chooses by such a key in its own dict."""
  for marker in _markers(annotation):
    names = [name for name, kind in marker.kinds.items() if kind is type(value)]
    if names and not marker.beside:
      return {marker.key: names[0]}
  return {}
