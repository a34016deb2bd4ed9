"""The rules of the house: what may import what, how long functions and files may be, how docstrings begin.

Bazel's visibility holds the first two as well, target by target.
"""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# The programs that asked other libraries, in witness/, run in environments of their own.
SOURCES = sorted(
  path for folder in ("core", "projects", "tools") for path in Path(folder).rglob("*.py") if "witness" not in path.parts
)
# The floors of core from the ground up: a file imports from its own and from those below. What stands in core itself is
# named one by one; rooms that share a floor know nothing of each other.
FLOORS = (
  ("signals", "errors", "masking", "files", "writable", "text_lines", "data_files", "import_tensorflow", "trees")
  + ("flag_parsers", "command", "live", "late", "plots"),
  ("config", "recipe"),
  ("sharding", "state", "checkpoint"),
  ("optim", "models", "pp"),
  ("data",),
  ("tasks", "cluster"),
  ("evaluators",),
  ("training",),
  ("testing",),
)
_LONGEST_FUNCTION = 60  # Lines. A config's `get_config` is a table and may be longer.
_LONGEST_FILE = 400  # Lines.
# A file whose docstrings are being rewritten; goes with them.
_OLD_DOCSTRINGS = ("core/training/progress.py",)
# How a file's content comes into a program.
_READING = {"read_text", "read_bytes", "read", "decompress"}
# Where TensorFlow may be imported at the top of a file; their users import such a file only when a run needs it.
TENSORFLOW = ("core/data/", "core/pp/")


def imports(tree: ast.AST, nested: bool = True) -> Iterator[str]:
  """Yields the modules a file imports: everywhere, or (`nested=False`) only outside functions, as it is loaded."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif nested or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      yield from imports(node, nested)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
  """Yields the functions and methods of a file that can be called from others: none within functions."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield node
    else:
      yield from functions(node)


def is_program(path: Path) -> bool:
  """Tells whether a file is a program by `core.command`, as trainers are by `core.training.cli`."""
  last = ast.parse(path.read_text()).body[-1:]
  return (
    bool(last)
    and re.match(r"if __name__ == '__main__':\s+(command\.run|cli\.main)\(", ast.unparse(last[0])) is not None
  )


def is_verb(word: str) -> bool:
  """Tells whether a docstring's first word may be a verb in the third person, "Returns" or "Lower-cases"."""
  return re.fullmatch(r"[A-Z][a-z]+(-[a-z]+)*s", word.rstrip(",.:;")) is not None and not word.endswith("ss")


def too_long(path: str, source: str) -> list[str]:
  """Returns where a file or a function of it is too long, one line each."""
  found = []
  if (lines := source.count("\n")) > _LONGEST_FILE:
    found.append(f"{path}: a file has at most {_LONGEST_FILE} lines, this one {lines}")
  for node in ast.walk(ast.parse(source, path)):
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name == "get_config":
      continue
    if (lines := node.end_lineno - node.lineno + 1) > _LONGEST_FUNCTION:
      found.append(f"{path}:{node.lineno}: a function has at most {_LONGEST_FUNCTION} lines, {node.name} {lines}")
  return found


def no_verbs(path: str, source: str) -> list[str]:
  """Returns the public functions of core whose docstring does not begin with a verb, one line each.

  A property is a noun and may be told as one.
  """
  if not path.startswith("core/") or path.endswith("_test.py") or path.startswith(_OLD_DOCSTRINGS):
    return []
  found = []
  for node in functions(ast.parse(source, path)):
    decorators = {getattr(each, "attr", getattr(each, "id", "")) for each in node.decorator_list}
    doc = ast.get_docstring(node) or ""
    if node.name.startswith("_") or not doc or decorators & {"property", "cached_property"}:
      continue
    if not is_verb(doc.split()[0]):
      found.append(f"{path}:{node.lineno}: the docstring of {node.name} begins with no verb: {doc.splitlines()[0]}")
  return found


def floor_of(room: str) -> int:
  """Returns the floor of `sharding`, `optim`, ...; a new room must be given one."""
  return next(floor for floor, rooms in enumerate(FLOORS) if room in rooms)


def climbs(path: str, name: str) -> bool:
  """Tells whether a file of core imports from a floor above its own, or another room of its own but the ground."""
  if not path.startswith("core/") or not name.startswith("core.") or path.endswith("_test.py"):
    return False
  room, other = path.split("/")[1].removesuffix(".py"), name.split(".")[1]
  own, its = floor_of(room), floor_of(other)
  return its > own or (its == own > 2 and room != other)


def cuts_text(path: str, source: str) -> list[str]:
  """Returns the functions that read a file and cut it by `splitlines`, which takes U+2028 and others for line ends."""
  if path.endswith("_test.py"):
    return []
  found = []
  for node in functions(ast.parse(source, path)):
    assigned = [each for each in ast.walk(node) if isinstance(each, ast.Assign) and called(each.value) & _READING]
    contents = {target.id for each in assigned for target in each.targets if isinstance(target, ast.Name)}
    cut = [each.value for each in ast.walk(node) if isinstance(each, ast.Attribute) and each.attr == "splitlines"]
    names = {each.id for of in cut for each in ast.walk(of) if isinstance(each, ast.Name)}
    if "readlines" in called(node) or names & contents or any(called(each) & _READING for each in cut):
      found.append(f"{path}:{node.lineno}: lines of a file are read by core.text_lines, in {node.name}")
  return found


def called(tree: ast.AST) -> set[str]:
  """Returns the names of the methods and of modules' functions that are called somewhere in a tree."""
  return {each.func.attr for each in ast.walk(tree) if isinstance(each, ast.Call) and hasattr(each.func, "attr")}


def breaches(path: str, source: str) -> list[str]:
  """Returns the rules that a file breaks, one line each."""
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


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_and_functions_are_short(path):
  assert not too_long(str(path), path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_of_lines_have_one_reader(path):
  assert not cuts_text(str(path), path.read_text())


@pytest.mark.parametrize(
  "body, is_told",
  [
    ("text = path.read_text()\n  return text.splitlines()", True),
    ("return files.read_bytes(path).decode().splitlines()", True),
    ("with open(path) as file:\n    return file.readlines()", True),
    ("return str(error).splitlines()[0]", False),
    ("return list(text_lines.read(path, where))", False),
  ],
)
def test_a_file_cut_by_splitlines_is_found_by_its_line(body, is_told):
  source = f"import os\n\ndef f(path):\n  {body}\n"
  assert [line.partition(" ")[0] for line in cuts_text("core/a.py", source)] == ["core/a.py:3:"] * is_told
  assert cuts_text("core/a_test.py", source) == []


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_docstrings_of_core_begin_with_a_verb(path):
  assert not no_verbs(str(path), path.read_text())


@pytest.mark.parametrize("path", [path for path in SOURCES if is_program(path)], ids=str)
def test_every_program_listens_for_signals_before_it_imports_what_takes_long(path):
  _, first, second, *_ = ast.parse(path.read_text()).body
  assert ast.unparse(first) == "from core import signals"
  assert ast.unparse(second) == "if __name__ == '__main__':\n    signals.listen()"


def test_what_is_too_long_is_found_by_its_line():
  body = "  x = 1\n" * _LONGEST_FUNCTION
  assert too_long("a.py", f"def get_config():\n{body}") == []
  assert too_long("a.py", f"class A:\n  def f(self):\n{body.replace('  x', '    x')}") == [
    "a.py:2: a function has at most 60 lines, f 61"
  ]
  assert too_long("a_test.py", "x = 1\n" * 401) == ["a_test.py: a file has at most 400 lines, this one 401"]


@pytest.mark.parametrize(
  "docstring, is_told",
  [
    ("Returns the size.", False),
    ("Lower-cases letters.", False),
    ("Yields, in order, all.", False),
    ("The size.", True),
    ("Return the size.", True),
    ("`a` or `b`.", True),
    ("Class of a thing.", True),
  ],
)
def test_a_docstring_without_a_verb_is_found_by_its_line(docstring, is_told):
  source = f'import os\n\ndef f():\n  """{docstring}"""\n'
  assert [line.partition(" ")[0] for line in no_verbs("core/trees.py", source)] == ["core/trees.py:3:"] * is_told
  assert no_verbs("core/trees_test.py", source) == no_verbs("tools/lock.py", source) == []
  for free in ("_f", "f"):
    private = source.replace("def f", f"@property\ndef {free}" if free == "f" else f"def {free}")
    assert no_verbs("core/trees.py", private) == []


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
