"""The `input` part of a config, checked: one source, or a mixture of several."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from core.data.source import Source, open_source
from core.errors import UserError, nearest

_INPUT_KEYS = ("data", "batch_size", "shuffle_buffer_size", "cache_raw", "pp", "skip_errors")
_COMPONENT_KEYS = ("data", "shuffle_buffer_size", "cache_raw", "pp")
_DEFAULTS = {"shuffle_buffer_size": 250_000, "cache_raw": False, "pp": ""}


@dataclasses.dataclass(frozen=True)
class Component:
  """One source of the input and how its examples are made.

  Attributes:
    key: the config's key, `input` or `input.NAME`, for messages.
    weight: its share of a mixture, before normalization.
    data: what `core.data.source.open_source` takes.
    pp: the preprocessing string.
    shuffle_buffer_size: records held to shuffle, over all processes; a split of no more is held whole.
    cache_raw: hold the split whole, whatever its size.
  """

  key: str
  weight: float
  data: dict[str, Any]
  pp: str
  shuffle_buffer_size: int
  cache_raw: bool

  @functools.cached_property
  def source(self) -> Source:
    """The source, opened when it is first asked for."""
    return open_source(self.data, f"{self.key}.data")


@dataclasses.dataclass(frozen=True)
class InputConfig:
  """The input of a training run; `batch_size` is global, over all processes."""

  batch_size: int
  skip_errors: bool
  components: tuple[Component, ...]


def read(config: Mapping[str, Any] | InputConfig) -> InputConfig:
  """Checks `config.input`; what was read before is returned as it is.

  A mixture reads `data = {"a": 0.7, "b": 0.3}` with `a = {"data": ..., "pp": ...}` and `b` beside it; the weights are
  shares of the batch, in any unit. What a component leaves out, it takes from the input.

  Raises:
    UserError: an unknown or missing key, a value of the wrong type or range.
  """
  if isinstance(config, InputConfig):
    return config
  config = as_dict(config, "input")
  data = as_dict(config.get("data"), "input.data")
  weights = data if data and all(_is_number(weight) for weight in data.values()) else {}
  _refuse_unknown(config, (*_INPUT_KEYS, *weights), "input")
  if "batch_size" not in config:
    raise UserError("config: input.batch_size is missing; it is the number of examples a step over all processes")
  batch_size = _checked(config, "batch_size", int, "input")
  skip_errors = _checked(config, "skip_errors", bool, "input") if "skip_errors" in config else False
  defaults = {**_DEFAULTS, **{key: config[key] for key in _DEFAULTS if key in config}}
  if not weights:
    return InputConfig(batch_size, skip_errors, (_component(defaults | {"data": data}, "input", 1.0),))
  for name, weight in weights.items():
    if name not in config:
      raise UserError(f"config: input.{name} is missing; the mixture input.data names it")
    if weight <= 0:
      raise UserError(f"config: input.data.{name} is a weight and must be greater than 0, got {weight!r}")
  parts = {name: as_dict(config[name], f"input.{name}") for name in weights}
  for name, part in parts.items():
    _refuse_unknown(part, _COMPONENT_KEYS, f"input.{name}")
  return InputConfig(
    batch_size, skip_errors, tuple(_component(defaults | parts[n], f"input.{n}", float(w)) for n, w in weights.items())
  )


def as_dict(value: Any, where: str) -> dict[str, Any]:
  """A config's part as a plain dict.

  Raises:
    UserError: it is none.
  """
  value = value.to_dict() if hasattr(value, "to_dict") else value
  if not isinstance(value, Mapping):
    raise UserError(f"config: {where} must be a dict, got {value!r}")
  return dict(value)


def check_alike(specs: dict[str, dict[str, Any]]) -> None:
  """Refuses components of a mixture whose examples differ in keys, types or shapes.

  Raises:
    UserError: they differ; the line names the first key.
  """
  (first, spec), *others = specs.items()
  for key, other in others:
    for name in sorted(spec.keys() | other.keys()):
      if spec.get(name) != other.get(name):
        a, b = (f"{s[name][0]} {s[name][1]}" if name in s else "missing" for s in (spec, other))
        raise UserError(f"config: the examples of a mixture must be alike: {name!r} is {a} in {first}, {b} in {key}")


def _component(given: dict[str, Any], key: str, weight: float) -> Component:
  return Component(
    key=key,
    weight=weight,
    data=as_dict(given.get("data"), f"{key}.data"),
    pp=_checked(given, "pp", str, key),
    shuffle_buffer_size=_checked(given, "shuffle_buffer_size", int, key),
    cache_raw=_checked(given, "cache_raw", bool, key),
  )


def _checked(given: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
  value = given[key]
  if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 1)):
    need = {int: "a whole number from 1 on", bool: "True or False", str: "a string"}[kind]
    raise UserError(f"config: {where}.{key} must be {need}, got {value!r}")
  return value


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
  for key in given:
    if key not in known:
      raise UserError(f"config: {where}.{key} is unknown{nearest(key, known)}")
