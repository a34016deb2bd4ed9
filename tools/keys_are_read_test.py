"""No key of a config goes unread: a dict refuses those that it does not know, and code reads those that it knows."""

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.models import one_tower, two_towers
from core.optim import transformations
from core.recipe import annotations, input, schedule, tasks
from core.recipe import transformations as recipes
from core.recipe.duration import UNITS, Duration
from core.recipe.models import load
from core.recipe.parse import parse
from core.recipe.types import OneOf
from core.tasks import distances

# What the trainers of all projects read a config into.
RECIPES = [tasks.Classification, tasks.Contrastive, tasks.Distillation]
for path in sorted(Path("projects").glob("*/recipe.py")):
  module = importlib.import_module(f"projects.{path.parent.name}.recipe")
  RECIPES += [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, tuple(RECIPES[:3]))]

# The rooms that a module of core.recipe is for; a key must be read in one of them, or in core.recipe itself.
ROOMS = {
  "distances": ("tasks", "evaluators"),
  "evaluators": ("evaluators", "data", "training"),
  "sources": ("data",),
  "input": ("data", "training"),
  "ema": ("optim",),
  "sam": ("optim",),
  "schedule": ("optim",),
  "optimizer": ("optim", "training"),
  "transformations": ("optim",),
  "sharding": ("sharding.py", "training"),
  "models": ("models",),
  "tasks": ("tasks", "models"),
  "recipe": ("training", "data"),
}
# Read by names that are put together: `stair_{unit}` in `Stair.boundaries`.
BY_PREFIX = {schedule.Stair: {f"stair_{unit}" for unit in UNITS}}
# A mixture's keys are the names of its components, each of which the input must have.
OPEN = (input.Mixture,)


def kinds(annotation: Any) -> Iterator[type]:
  """Yields the dataclasses that a value of an annotation may hold, at any depth."""
  base, markers = annotations.split(annotation)
  for marker in markers:
    for kind in marker.kinds.values() if isinstance(marker, OneOf) else ():
      yield from kinds(kind)
  for inner in typing.get_args(base):
    yield from kinds(inner)
  if dataclasses.is_dataclass(base) and base is not Duration:
    yield from (each for each in base.__mro__ if dataclasses.is_dataclass(each))
    held = [*annotations.hints(base).values(), *getattr(base, "EXTRA", {}).values()]
    yield from itertools.chain.from_iterable(map(kinds, held))


KINDS = sorted({kind for recipe in RECIPES for kind in kinds(recipe)}, key=lambda kind: f"{kind.__module__}.{kind}")
"""All dataclasses that a config may be read into."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OPEN], ids=lambda kind: kind.__name__)
def test_a_key_that_nobody_knows_is_refused_in_every_dict(kind):
  teachers = {"teachers": ["prof"]} if issubclass(kind, tasks.Distillation) else {}  # They bring keys along.
  with pytest.raises(UserError, match=r"^config\.nobody_reads_this is no key"):
    parse(kind, {"nobody_reads_this": 1, **teachers})


def read_in(source: str) -> set[str]:
  """Returns the names of attributes that a program reads, and the words among its texts, as `getattr` takes them.

  What a dataclass looks at to check itself is not read by that.
  """
  found = set()
  waiting: list[ast.AST] = [ast.parse(source)]
  while waiting:
    node = waiting.pop()
    if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
      continue
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
      found.add(node.attr)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
      found.add(node.value)
    waiting += ast.iter_child_nodes(node)
  return found


@functools.cache
def read_below(place: str) -> frozenset[str]:
  """Returns what is read in a file, or in all of a folder but its tests."""
  path = Path(place)
  files = [path] if path.suffix else [each for each in path.rglob("*.py") if not each.stem.endswith("_test")]
  return frozenset().union(*(read_in(each.read_text()) for each in files))


def keys_read(kind: type) -> frozenset[str]:
  """Returns what is read where the keys of a dataclass belong: its own file, its rooms, and all projects."""
  own = read_below(f"{kind.__module__.replace('.', '/')}.py")
  room = kind.__module__.removeprefix("core.recipe.").split(".")[0].split("_")[0]
  rooms = ROOMS[room] if kind.__module__.startswith("core.recipe.") else ("tasks",)
  return own.union(read_below("projects"), *(read_below(f"core/{each}") for each in rooms))


NAMES = {kind: name for name, kind in recipes.TRANSFORMATIONS.items() if not name.startswith(recipes.PREFIX)}
# Dataclasses whose fields are handed to a function as its arguments.
ARGUMENTS = {kind: transformations.known()[name] for kind, name in NAMES.items()}
ARGUMENTS |= {load.LoadOneTower: one_tower.load, load.LoadTwoTowers: two_towers.load}
ARGUMENTS |= distances.FUNCTIONS


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ARGUMENTS], ids=lambda kind: kind.__name__)
def test_every_key_is_read_where_it_belongs(kind):
  own = inspect.get_annotations(kind)  # Those of its bases belong where these are.
  keys = {field.name for field in dataclasses.fields(kind) if annotations.is_key(field) and field.name in own}
  assert keys - keys_read(kind) - BY_PREFIX.get(kind, set()) == set()


@pytest.mark.parametrize("kind", ARGUMENTS, ids=lambda kind: kind.__name__)
def test_every_key_that_is_handed_to_a_function_is_an_argument_of_it(kind):
  assert {field.name for field in dataclasses.fields(kind)} <= set(inspect.signature(ARGUMENTS[kind]).parameters)


def test_a_key_that_only_checks_look_at_counts_as_unread():
  """The test's own witness: a dataclass in whose file nothing but its check reads a key."""
  source = """
class Mixup:
  p: float
  q: float
  def __post_init__(self):
    if self.q < 0:
      raise ValueError("q")
  def draw(self):
    return self.p
"""
  assert read_in(source) == {"p"}
