"""Reads a config into a dataclass by the annotations of its fields, and refuses in one line what does not fit.

    parse(Sam, {"rho": -1}, "config.sam")  ->  UserError: config.sam.rho must be a number that is not negative, got -1

Numbers, text and choices are judged by msgspec in its strict mode (True is no number, NaN and infinity are none), which
starts in a fifth of the time of pydantic. What a config has beyond JSON stands here: durations in one of several units,
dicts that are one of several dataclasses, keys that other keys bring along.

A dataclass may have:
  __post_init__       raises `types.Refused` where its fields do not fit each other.
  extra_keys(given)   a class method: the keys beside its fields that a config may have, and their types, by what is
                      given. They are collected in its field `extra`, a dict.
  hint(key)           a class method: what to say of a key that it does not have, `"is called adaptive here"`, or None.
  defaults_for(given) a class method: the values of fields that have a default and that the config does not name, by
                      the values that it gives. A model's `variant="S/16"` fills in its sizes so.
  stated              a field, `frozenset[str]`: the keys that the config gives. It is no key itself.
  TITLE               what it is to a reader, "the source tfds": `config.input.data.splt is no key of the source tfds`.
"""

import dataclasses
import functools
import types as builtin_types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union

import msgspec

from core.errors import UserError, nearest
from core.recipe import annotations, words
from core.recipe.duration import Duration
from core.recipe.types import Check, OneOf, Refused

T = TypeVar("T")

_MAX_DEPTH = 50


class _Unfit(UserError):
  """A value of the right type that a check refuses: of the members of a union its reason is the one to give."""


def parse(kind: type[T] | Any, value: Any, where: str = "config") -> T:
  """Returns `value` as an instance of `kind`, a dataclass or any annotation that a field of one may have.

  Args:
    kind: what to read.
    value: a dict, a ConfigDict, or what stands at a key of one.
    where: the value's path in the config, for messages.

  Raises:
    UserError: it does not fit; the line begins with the path of what is wrong.
  """
  return _parse(kind, plain(value, where), where)


def plain(value: Any, where: str = "config") -> Any:
  """Returns a config as dicts, tuples and scalars: ConfigDicts, lists and NumPy's scalars are none.

  Raises:
    UserError: it is nested without end.
  """
  return _plain(value, where, 0)


def _plain(value: Any, where: str, depth: int) -> Any:
  if depth > _MAX_DEPTH:
    raise UserError(f"{where}: nested too deeply")
  # A ConfigDict is no Mapping, and its own conversion to a dict would follow a dict that holds itself without end.
  if isinstance(value, Mapping) or (hasattr(value, "to_dict") and hasattr(value, "items")):
    return {key: _plain(each, f"{where}.{key}", depth + 1) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return tuple(_plain(each, f"{where}[{i}]", depth + 1) for i, each in enumerate(value))
  if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
    return value.item()
  return value


def _parse(kind: Any, value: Any, where: str) -> Any:
  base, markers = annotations.split(kind)
  for marker in markers:
    if isinstance(marker, OneOf) and not marker.beside:
      return _parse_one_of(marker, value, where)
  found = _parse_base(base, markers, value, where)
  for marker in markers:
    if isinstance(marker, Check):
      try:
        found = marker.fn(found)
      except ValueError as error:
        raise _Unfit(f"{where} must be {marker.words}, got {words.shown(value)}: {error}") from None
  return found


def _parse_base(base: Any, markers: Sequence[Any], value: Any, where: str) -> Any:
  if base is Any:
    return value
  if dataclasses.is_dataclass(base):
    return _parse_fields(base, value, where)
  origin = typing.get_origin(base)
  if origin in (typing.Union, builtin_types.UnionType):
    return _parse_union(base, markers, value, where)
  if origin is tuple:
    return _parse_tuple(Annotated[base, *markers] if markers else base, value, where)
  if origin is dict:
    _require_dict(base, value, where)
    return {key: _parse(typing.get_args(base)[1], each, f"{where}.{key}") for key, each in value.items()}
  metas = [marker for marker in markers if isinstance(marker, msgspec.Meta)]
  leaf = functools.reduce(lambda annotated, meta: Annotated[annotated, meta], metas, base)
  try:
    found = msgspec.convert(value, leaf, strict=True)
    if isinstance(found, str):
      found.encode()  # Half of a pair of surrogates is no text that a file or a terminal could hold.
    return found
  except (msgspec.ValidationError, UnicodeEncodeError):
    raise _misfit(Annotated[leaf, *markers] if markers else leaf, value, where) from None


def _parse_one_of(marker: OneOf, value: Any, where: str) -> Any:
  _require_dict(dict, value, where)
  value = dict(value)
  given = value.pop(marker.key, None)
  if given is None:
    given = marker.default(value) if callable(marker.default) else marker.default
  if given is None:
    raise UserError(f"{where}.{marker.key} is missing; it is {words.choices(marker.kinds)}")
  return _parse(_chosen(marker, given, f"{where}.{marker.key}"), value, where)


def _chosen(marker: OneOf, name: Any, where: str) -> Any:
  if marker.other is not None and isinstance(name, str) and name and name not in marker.kinds:
    return marker.other
  if not isinstance(name, str) or name not in marker.kinds:
    raise UserError(f"{where}: there is no {words.shown(name)}{nearest(str(name), marker.kinds)}")
  return marker.kinds[name]


def _parse_fields(kind: type, value: Any, where: str) -> Any:
  _require_dict(kind, value, where)
  of_fields, extra = annotations.hints(kind), kind.extra_keys(value) if hasattr(kind, "extra_keys") else {}
  _refuse_unknown(kind, value, where, [*annotations.keys_of(kind), *extra])
  found = {}
  for field in dataclasses.fields(kind):
    if annotations.is_key(field):
      found |= _parse_field(kind, field, of_fields[field.name], value, where)
  if hasattr(kind, "defaults_for"):
    found = {**kind.defaults_for(found), **found}
  if "stated" in of_fields:
    found["stated"] = frozenset(value)
  if hasattr(kind, "extra_keys"):
    found["extra"] = _parse_extra(kind, extra, value, where)
  try:
    return kind(**found)
  except Refused as error:
    path = f"{where}.{error.key} " if error.key else f"{where}: "
    raise UserError(f"{path}{error}") from None


def _parse_extra(kind: type, extra: Mapping[str, Any], value: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns the values of keys that others bring along: what is given, and what a name beside it chooses."""
  return {
    key: _parse(_resolved(kind, annotation, value, where), value.get(key, {}), f"{where}.{key}")
    for key, annotation in extra.items()
    if key in value or _beside(annotation) is not None
  }


def _parse_field(
  kind: type, field: dataclasses.Field, annotation: Any, value: Mapping[str, Any], where: str
) -> dict[str, Any]:
  """Returns `{field: its value}`, or nothing where its default is to stand."""
  name = field.name
  if annotations.is_duration(annotation):
    given = _parse_duration(annotation, name, value, where)
    if given is not None:
      return {name: given[0]}
  elif name in value:
    return {name: _parse(_resolved(kind, annotation, value, where), value[name], f"{where}.{name}")}
  if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
    return {}
  if _beside(annotation) is not None:  # Chosen by a name that is given; its own fields may all have defaults.
    return {name: _parse(_resolved(kind, annotation, value, where), {}, f"{where}.{name}")}
  raise UserError(f"{where}.{words.key_of(name, annotation)} is missing; {words.needed(kind, name)}")


def _refuse_unknown(kind: type, value: Mapping[Any, Any], where: str, known: Sequence[str]) -> None:
  for key in value:
    if not isinstance(key, str):
      raise UserError(f"{where}: keys are text, and {words.shown(key)} is none")
    if key not in known:
      hint = kind.hint(key) if hasattr(kind, "hint") else None
      if hint:
        raise UserError(f"{where}.{key} {hint}")
      title = getattr(kind, "TITLE", None)
      raise UserError(f"{where}.{key} is no key{f' of {title}' if title else ''}{nearest(key, known)}")


def _parse_duration(annotation: Any, name: str, value: Mapping[str, Any], where: str) -> tuple[Duration | None] | None:
  """Returns the duration in a tuple, `(None,)` where it is None and may be; None where it is not given."""
  units = annotations.units_of(annotation)
  given = [unit for unit in units if f"{name}_{unit}" in value]
  if len(given) > 1:
    raise UserError(f"{where}: {' and '.join(f'{name}_{unit}' for unit in given)} are both set; keep one of them")
  if not given:
    return None
  (unit,) = given
  key, number = f"{where}.{name}_{unit}", value[f"{name}_{unit}"]
  if number is None and annotations.may_be_none(annotation):
    return (None,)
  number = _parse(words.duration_number(unit), number, key)
  return (Duration(number, unit, key),)


def _parse_union(kind: Any, markers: Sequence[Any], value: Any, where: str) -> Any:
  """Returns the value as the one member of a union that is for its form: a dict, a list, or a scalar."""
  members = [member for member in typing.get_args(kind) if member is not type(None)]
  if value is None and len(members) < len(typing.get_args(kind)):
    return None
  form = "dict" if isinstance(value, Mapping) else "list" if isinstance(value, tuple) else "scalar"
  fitting = [member for member in members if form in annotations.forms(member)]
  if len(fitting) == 1 and (len(members) == 1 or form != "scalar"):
    return _parse(fitting[0], value, where)
  unfit = None
  for member in fitting:
    try:
      return _parse(member, value, where)
    except _Unfit as error:
      unfit = unfit or error
    except UserError:
      continue
  raise unfit or _misfit(Annotated[kind, *markers] if markers else kind, value, where)


def _parse_tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
  of_items = typing.get_args(annotations.split(kind)[0])
  if not isinstance(value, tuple):
    raise _misfit(kind, value, where)
  if len(of_items) == 2 and of_items[1] is Ellipsis:
    of_items = (of_items[0],) * len(value)
  if len(value) != len(of_items):
    raise _misfit(kind, value, where)
  return tuple(_parse(of, each, f"{where}[{i}]") for i, (of, each) in enumerate(zip(of_items, value)))


def _require_dict(kind: Any, value: Any, where: str) -> None:
  if not isinstance(value, Mapping):
    raise _misfit(kind, value, where)
  for key in value:
    if not isinstance(key, str):
      raise UserError(f"{where}: keys are text, and {words.shown(key)} is none")


def _misfit(kind: Any, value: Any, where: str) -> UserError:
  line = f"{where} must be {words.describe(kind)}, got {words.shown(value)}"
  if annotations.is_literal(kind) and isinstance(value, str):
    hint = nearest(value, [str(choice) for choice in typing.get_args(annotations.split(kind)[0])])
    line += hint if "did you mean" in hint else ""
  return UserError(line)


def _beside(annotation: Any) -> OneOf | None:
  return next((m for m in annotations.split(annotation)[1] if isinstance(m, OneOf) and m.beside), None)


def _resolved(kind: type, annotation: Any, given: Mapping[str, Any], where: str) -> Any:
  """Returns a field's annotation; where a name beside it chooses a dataclass, that dataclass."""
  marker = _beside(annotation)
  if marker is None:
    return annotation
  name = given.get(marker.key)
  if name is None:
    name = marker.default(given) if callable(marker.default) else marker.default or _default(kind, marker.key)
  if name is None:
    raise UserError(f"{where}.{marker.key} is missing; it is {words.choices(marker.kinds)}")
  chosen = _chosen(marker, name, f"{where}.{marker.key}")
  return Union[chosen, None] if annotations.may_be_none(annotation) else chosen  # noqa: UP007 (chosen at run time)


def _default(kind: type, name: str) -> Any:
  """Returns the default of a field; None where it has none."""
  default = next((field.default for field in dataclasses.fields(kind) if field.name == name), None)
  return None if default is dataclasses.MISSING else default
