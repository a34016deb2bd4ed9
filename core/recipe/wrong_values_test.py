"""Every field of every dataclass of the recipe with every kind of value: what its annotation does not allow is refused.

The fields are found by walking the annotations of the recipes, so that one that is added later is held as well. What an
annotation allows is judged a second time here, by `fits`, which knows nothing of how a config is read.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import pytest

from core.errors import UserError
from core.recipe import tasks
from core.recipe.duration import Duration, Units
from core.recipe.parse import parse
from core.recipe.types import Check, OneOf

RECIPES = (tasks.Classification, tasks.Contrastive, tasks.Distillation)

VALUES = [
  None, True, False, 0, 1, -1, 3, 2**31, 2**70, 0.0, 0.5, 1.0, -0.5, 1e300, float("nan"), float("inf"), -float("inf"),
  "", "a", "[", "\0", "x" * 400, "bfloat16", b"bytes", (), ("a",), (1, 2), ((),), (("a", 1),), (("[", None),), (None,),
  {}, {"a": 1}, {"a": {}}, {1: 2}, {"": None}, object(), len, {1, 2}, 1 + 2j,
]  # fmt: skip


def taken_apart(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
  """The type and its markers."""
  if typing.get_origin(annotation) is Annotated:
    base, *markers = typing.get_args(annotation)
    inner, more = taken_apart(base)
    return inner, (*more, *markers)
  return annotation, ()


def members(annotation: Any) -> Iterator[Any]:
  """All annotations that stand in one."""
  yield annotation
  base, _ = taken_apart(annotation)
  for each in typing.get_args(base) if typing.get_origin(base) is not Literal else ():
    if each is not Ellipsis:
      yield from members(each)


def dataclasses_in(kind: type, found: dict[type, None]) -> dict[type, None]:
  """Every dataclass that can be read on the way of reading `kind`."""
  if kind in found or kind is Duration:
    return found
  found[kind] = None
  for annotation in typing.get_type_hints(kind, include_extras=True).values():
    for member in members(annotation):
      base, markers = taken_apart(member)
      inner = [each for m in markers if isinstance(m, OneOf) for each in m.kinds.values()]
      for each in [base, *inner]:
        if dataclasses.is_dataclass(each) and isinstance(each, type):
          dataclasses_in(each, found)
  for each in getattr(kind, "EXTRA", {}).values():
    if dataclasses.is_dataclass(each):
      dataclasses_in(each, found)
  return found


def fits(annotation: Any, value: Any) -> bool | None:
  """Whether a value is of a type, by the type's own words; None where only reading it tells (a dataclass, a check)."""
  base, markers = taken_apart(annotation)
  if any(isinstance(m, OneOf) for m in markers):
    return None if isinstance(value, dict) else (False if base is Any else fits(base, value))
  if base is Any:
    return True
  origin, args = typing.get_origin(base), typing.get_args(base)
  if origin in (typing.Union, types.UnionType):
    answers = [fits(each, value) for each in args]
    return True if True in answers else None if None in answers else False
  if base is type(None) or base is None:
    return value is None
  if dataclasses.is_dataclass(base):
    return None if isinstance(value, dict) else False
  if origin is Literal:
    return any(type(value) is type(each) and value == each for each in args)
  if origin is tuple:
    if not isinstance(value, tuple):
      return False
    of = [args[0]] * len(value) if args[-1] is Ellipsis else args
    return all_of(fits(each, item) for each, item in zip(of, value)) if len(of) == len(value) else False
  if origin is dict:
    keys = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return all_of(fits(args[1], item) for item in value.values()) if keys else False
  if not is_scalar(base, value) or not within(markers, value):
    return False
  return None if any(isinstance(m, Check) for m in markers) else True


def all_of(answers: Iterator[bool | None]) -> bool | None:
  answers = list(answers)
  return False if False in answers else None if None in answers else True


def is_scalar(base: Any, value: Any) -> bool:
  if base is float:
    return type(value) in (int, float) and math.isfinite(value) if abs_or_none(value) else False
  return type(value) is base


def abs_or_none(value: Any) -> bool:
  """Whether it is a number that a float holds."""
  try:
    return type(value) in (int, float) and math.isfinite(float(value))
  except OverflowError:
    return False


def within(markers: tuple[Any, ...], value: Any) -> bool:
  for meta in (m for m in markers if isinstance(m, msgspec.Meta)):
    if meta.min_length is not None and len(value) < meta.min_length:
      return False
    low = (meta.ge is None or value >= meta.ge) and (meta.gt is None or value > meta.gt)
    if not (low and (meta.le is None or value <= meta.le) and (meta.lt is None or value < meta.lt)):
      return False
  return True


def fields() -> list[Any]:
  """(dataclass, field, key in a config, annotation of the value there) of all fields."""
  found: dict[type, None] = {}
  for recipe in RECIPES:
    dataclasses_in(recipe, found)
  rows = []
  for kind in found:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
      if not field.init or field.name in ("extra", "stated"):
        continue
      annotation = hints[field.name]
      durations = [m for m in members(annotation) if taken_apart(m)[0] is Duration]
      if durations:
        units = [m for member in members(annotation) for m in taken_apart(member)[1] if isinstance(m, Units)]
        nullable = type(None) in typing.get_args(taken_apart(annotation)[0])
        for unit in units[0].units if units else ("steps", "examples", "epochs", "percent"):
          high = 1.0 if unit == "percent" else 3.4e38
          number = Annotated[float, msgspec.Meta(ge=0, le=high)]
          rows.append((kind, f"{field.name}_{unit}", number | None if nullable else number))
      else:
        rows.append((kind, field.name, annotation))
  return rows


# What an annotation alone does not tell of a right value.
RIGHT = {"split": "train", "teachers": ("prof",)}
RIGHT_OF = {
  "Arrays": {"path": "a.npz"},
  "Sam": {"rho": 0.1},
  "Zeroshot": {"dataset_names": ("mnist",)},
  "Distillation": {"student_name": "vit", "prof_name": "vit", "prof_init": None},
}


def right_dict(kind: type) -> dict[str, Any]:
  """A config's dict for a dataclass, with those keys alone that it must have."""
  found: dict[str, Any] = {}
  hints = typing.get_type_hints(kind, include_extras=True)
  for field in dataclasses.fields(kind):
    needed = field.default is field.default_factory is dataclasses.MISSING
    if not field.init or field.name in ("extra", "stated") or not needed:
      continue
    base, markers = taken_apart(hints[field.name])
    beside = next((m for m in markers if isinstance(m, OneOf) and m.beside), None)
    if base is Duration:
      found[f"{field.name}_steps"] = 1
    elif beside:
      given = found.get(beside.key)
      name = given if given in beside.kinds else next(iter(beside.kinds))
      found |= {beside.key: name, field.name: right_dict(beside.kinds[name])}
    elif field.name not in found:
      found[field.name] = RIGHT[field.name] if field.name in RIGHT else right_value(hints[field.name])
  return found | RIGHT_OF.get(kind.__name__, {})


def right_value(annotation: Any) -> Any:
  base, markers = taken_apart(annotation)
  for marker in markers:
    if isinstance(marker, OneOf):
      name, kind = next(iter(marker.kinds.items()))
      return {marker.key: name, **right_dict(kind)}
  origin, args = typing.get_origin(base), typing.get_args(base)
  if origin in (typing.Union, types.UnionType):
    return right_value(next(each for each in args if each is not type(None)))
  if origin is Literal:
    return args[0]
  if origin is tuple:
    return tuple(right_value(each) for each in args if each is not Ellipsis)
  if origin is dict:
    return {"a": right_value(args[1])}
  return right_dict(base) if dataclasses.is_dataclass(base) else {int: 1, float: 0.5, str: "a", bool: False}[base]


FIELDS = fields()


def test_the_walk_finds_the_whole_recipe():
  names = {kind.__name__ for kind, _, _ in FIELDS}
  assert {"Classification", "Contrastive", "Distillation", "Input", "Tfds", "Sam", "Ema", "Cosine", "Knn"} <= names
  assert len(FIELDS) > 300


def is_one_duration(one: str, other: str) -> bool:
  """Whether two keys give one duration in two units."""
  return one.rpartition("_")[0] == other.rpartition("_")[0] and one.endswith("_steps") and one != other


@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, _, _ in FIELDS), ids=lambda kind: kind.__name__)
def test_what_is_right_is_read(kind):
  assert isinstance(parse(kind, right_dict(kind), "config.part"), kind)


@pytest.mark.parametrize("kind, key, annotation", FIELDS, ids=[f"{kind.__name__}.{key}" for kind, key, _ in FIELDS])
def test_a_value_that_does_not_fit_is_refused_by_its_path(kind, key, annotation):
  others = {name: value for name, value in right_dict(kind).items() if not is_one_duration(name, key)}
  for value in VALUES:
    right = fits(annotation, value)
    try:
      parse(kind, {**others, key: value}, "config.part")
      refused = None
    except UserError as error:
      refused = str(error)
    if refused is not None:
      assert len(refused) <= 300
      assert "\n" not in refused
      assert refused.startswith("config.part")
    if right is False:
      assert refused is not None, f"{key}={value!r} was accepted"
      assert refused.startswith(f"config.part.{key}"), refused


@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, _, _ in FIELDS), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("key", ["no_such_key", "", "a.b", "é"])
def test_an_unknown_key_is_refused_by_its_path(kind, key):
  with pytest.raises(UserError) as error:
    parse(kind, {**right_dict(kind), key: 1}, "config.part")
  assert str(error.value).startswith(f"config.part.{key} ")
