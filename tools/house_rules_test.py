"""The rules of the house that an import can break. Bazel's visibility holds the first two as well, target by target."""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

# The programs that asked other libraries, in witness/, run in environments of their own.
SOURCES = sorted(
  path for folder in ("core", "projects") for path in Path(folder).rglob("*.py") if "witness" not in path.parts
)
# The floors of core from the ground up: a file imports from its own and from those below. What stands in core itself is
# named one by one; rooms that share a floor know nothing of each other.
FLOORS = (
  ("errors", "files", "trees", "durations", "terminal", "plots"),
  ("config", "recipe"),
  ("sharding", "state", "checkpoint"),
  ("optim", "models", "pp"),
  ("data",),
  ("tasks", "cluster"),
  ("evaluators",),
  ("training",),
  ("testing",),
)
# Where TensorFlow may be imported at the top of a file; their users import such a file only when a run needs it.
TENSORFLOW = ("core/data/", "core/pp/")


def imports(tree: ast.AST, nested: bool = True) -> Iterator[str]:
  """Names of the modules a file imports: everywhere, or (`nested=False`) only outside functions, as it is loaded."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif nested or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      yield from imports(node, nested)


def floor_of(room: str) -> int:
  """The floor of `sharding`, `optim`, ...; a new room must be given one."""
  return next(floor for floor, rooms in enumerate(FLOORS) if room in rooms)


def climbs(path: str, name: str) -> bool:
  """Whether a file of core imports from a floor above its own, or from another room of its own floor but the ground."""
  if not path.startswith("core/") or not name.startswith("core.") or path.endswith("_test.py"):
    return False
  room, other = path.split("/")[1].removesuffix(".py"), name.split(".")[1]
  own, its = floor_of(room), floor_of(other)
  return its > own or (its == own > 2 and room != other)


def breaches(path: str, source: str) -> list[str]:
  """The rules that a file breaks, one line each."""
  tree = ast.parse(source, path)
  package, owner = itertools.islice([*path.split("/"), ""], 2)
  found = []
  for name in imports(tree):
    top, _, rest = name.partition(".")
    if climbs(path, name):
      found.append(f"{path}: no import goes up or across the floors of core, but {name}")
    if top == "projects" and package == "core":
      found.append(f"{path}: core imports no project, but {name}")
    if top == "projects" and package == "projects" and rest.split(".")[0] != owner:
      found.append(f"{path}: a project imports no other project, but {name}")
  if not path.startswith(TENSORFLOW):
    for name in imports(tree, nested=False):
      if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
        found.append(f"{path}: TensorFlow is imported only in core/data and core/pp, or inside a function")
  return found


def test_the_sources_are_all_here():
  assert {"core/errors.py", "core/training/loop.py"} <= {str(path) for path in SOURCES}
  assert any(str(path).startswith("projects/") for path in SOURCES)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_the_rules_hold(path):
  assert not breaches(str(path), path.read_text())


@pytest.mark.parametrize(
  "path, source, words",
  [
    ("core/trees.py", "def f():\n  from projects.vit import train", "core imports no project"),
    ("core/trees.py", "import projects.vit.train", "core imports no project"),
    ("projects/vit/train.py", "from projects.mixer.models import mixer", "no other project"),
    ("projects/vit/train.py", "from projects import mixer", "no other project"),
    ("core/optim/sam.py", "from core.tasks import task", "floors"),
    ("core/optim/sam.py", "from core.models import vit", "floors"),
    ("core/config.py", "from core import state", "floors"),
    ("core/training/loop.py", "import tensorflow as tf", "TensorFlow"),
    ("core/training/loop.py", "try:\n  from tensorflow.io import gfile\nexcept ImportError:\n  pass", "TensorFlow"),
    ("projects/vit/train.py", "class A:\n  import tensorflow_datasets", "TensorFlow"),
  ],
)
def test_a_breach_is_found(path, source, words):
  (breach,) = breaches(path, source)
  assert words in breach


@pytest.mark.parametrize(
  "path, source",
  [
    ("core/data/feed.py", "import tensorflow as tf"),
    ("core/tasks/task.py", "from core.state import TrainState"),
    ("core/optim/sam_test.py", "from core.testing import params"),
    ("core/training/loop.py", "def f():\n  import tensorflow as tf"),
    ("projects/vit/train.py", "from projects.vit.configs import digits\nfrom core import trees"),
  ],
)
def test_what_is_allowed_is_no_breach(path, source):
  assert breaches(path, source) == []
