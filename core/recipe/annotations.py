"""Annotations of a recipe's fields, taken apart."""

import dataclasses
import functools
import types as builtin_types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from core.recipe.duration import UNITS, Duration, Units
from core.recipe.types import OneOf

_FILLED_IN = ("extra", "stated")


@functools.cache
def hints(kind: type) -> dict[str, Any]:
  """Returns the annotations of a dataclass's fields, those of its bases too."""
  return typing.get_type_hints(kind, include_extras=True)


def split(kind: Any) -> tuple[Any, tuple[Any, ...]]:
  """Returns what `Annotated` is about and its markers; of `X | None` the two of X where X alone has markers."""
  if typing.get_origin(kind) is Annotated:
    base, *markers = typing.get_args(kind)
    inner, more = split(base)
    return inner, (*more, *markers)
  return kind, ()


def may_be_none(kind: Any) -> bool:
  """Tells whether None fits."""
  return type(None) in typing.get_args(split(kind)[0])


def _members(kind: Any) -> tuple[Any, ...]:
  base = split(kind)[0]
  is_union = typing.get_origin(base) in (typing.Union, builtin_types.UnionType)
  return typing.get_args(base) if is_union else (kind,)


def forms(kind: Any) -> set[str]:
  """Returns the forms of value that a type may take: "dict", "list", "scalar"."""
  base, markers = split(kind)
  if any(isinstance(marker, OneOf) for marker in markers) or dataclasses.is_dataclass(base):
    return {"dict"}
  origin = typing.get_origin(base)
  if origin in (typing.Union, builtin_types.UnionType):
    return set().union(*map(forms, typing.get_args(base)))
  return {"dict"} if dict in (base, origin) else {"list"} if origin is tuple else {"scalar"}


def is_duration(kind: Any) -> bool:
  """Tells whether a field is a duration, or None."""
  return any(split(member)[0] is Duration for member in _members(kind))


def units_of(kind: Any) -> Sequence[str]:
  """Returns the units in which a duration can be given."""
  markers = [marker for member in (kind, *_members(kind)) for marker in split(member)[1]]
  return next((marker.units for marker in markers if isinstance(marker, Units)), UNITS)


def is_key(field: dataclasses.Field) -> bool:
  """Tells whether a config may name a field; `core.recipe.parse` fills in the others."""
  return field.init and field.name not in _FILLED_IN


@functools.cache
def keys_of(kind: type) -> tuple[str, ...]:
  """Returns the keys that a config may have for a dataclass: its fields, a duration's once a unit."""
  names = [field.name for field in dataclasses.fields(kind) if is_key(field)]
  annotations = hints(kind)
  each = lambda name: [f"{name}_{u}" for u in units_of(annotations[name])] if is_duration(annotations[name]) else [name]
  return tuple(key for name in names for key in each(name))


def is_literal(kind: Any) -> bool:
  """Tells whether a type is a choice of values."""
  return typing.get_origin(split(kind)[0]) is Literal
