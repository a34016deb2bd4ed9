"""A config file becomes a plain dict, overrides included, or one line says which file and line is wrong."""

import json

import ml_collections
import pytest

from core.errors import UserError
from core.recipe import load

CONFIG = """
from core import config as config_lib

def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="S/16", runlocal=False, res=224, wd=0.1)
  config = config_lib.ConfigDict()
  config.seed = 0
  config.total_epochs = 2 if arg.runlocal else 90
  config.lr = 1e-3
  config.name = "1"
  config.model = dict(variant=arg.variant, patch_size=[2, 2])
  config.input = dict(batch_size=arg.res)
  config.schedule = dict(warmup_steps=10)
  return config
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return path


def test_a_config_is_plain_dicts_and_tuples(file):
  assert load.read(str(file)) == {
    "seed": 0,
    "total_epochs": 90,
    "lr": 1e-3,
    "name": "1",
    "model": {"variant": "S/16", "patch_size": (2, 2)},
    "input": {"batch_size": 224},
    "schedule": {"warmup_steps": 10},
  }


def test_arguments_behind_the_colon_have_the_type_of_their_default(file):
  config = load.read(f"{file}:runlocal,variant=B/32,res=8")
  assert (config["total_epochs"], config["model"]["variant"], config["input"]["batch_size"]) == (2, "B/32", 8)


@pytest.mark.parametrize(
  "key, text, value",
  [
    ("lr", "1", 1),
    ("lr", "fast", "fast"),
    ("name", "2", "2"),
    ("name", "None", None),
    ("model.patch_size", "(4,4)", (4, 4)),
    ("model.width", "[8, 9]", (8, 9)),
    ("mixup.p", "0.5", 0.5),
    ("evals.a.b.c", "{'d': [1]}", {"d": (1,)}),
    ("model", "(" * 10_000, "(" * 10_000),
  ],
)
def test_an_override_changes_one_entry(file, key, text, value):
  config = load.read(str(file), [(key, text)])
  for name in key.split("."):
    config = config[name]
  assert config == value


def test_a_duration_in_another_unit_replaces_the_one_in_the_file(file):
  config = load.read(str(file), [("total_steps", "20"), ("schedule.warmup_percent", "0.1")])
  assert "total_epochs" not in config
  assert config["schedule"] == {"warmup_percent": 0.1}


@pytest.mark.parametrize(
  "text, words",
  [
    ("x = (", r"config \S+config.py:1: SyntaxError: "),
    ("import nowhere_to_be_found", r"config \S+config.py:1: ModuleNotFoundError: No module named"),
    ("a = 1\n1 / 0", r"config \S+config.py:2: ZeroDivisionError: division by zero"),
    ("def get_config(arg=None):\n  return [][1]", r"config \S+config.py:2: IndexError: "),
    ("def get_config():\n  return {}", r"config \S+config.py:1: TypeError: "),
    ("import sys\nsys.exit(0)", r"config \S+config.py:2: SystemExit: 0"),
    ("x = 1", r"has no function get_config\(arg\)"),
    ("get_config = 3", r"has no function get_config\(arg\)"),
    ("def get_config(arg=None):\n  pass", r"get_config must return a ConfigDict or a dict, not None"),
    ("def get_config(arg=None):\n  return 'x' * 1000", r"get_config must return a ConfigDict or a dict, not "),
    ("def get_config(arg=None):\n  a = {}\n  a['a'] = a\n  return a", r"config\.a\..* nested too deeply"),
    ("\0", r"config \S+config.py:1: "),
    ("def f():\n  f()\nf()", r"config \S+config.py:2: RecursionError: "),
  ],
)
def test_a_broken_file_is_one_line_with_its_line_number(tmp_path, text, words):
  path = tmp_path / "config.py"
  path.write_text(text)
  with pytest.raises(UserError, match=words) as error:
    load.read(str(path))
  assert len(str(error.value)) <= 300
  assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
  (tmp_path / "config.py").write_bytes(b"\xff\xfe")
  with pytest.raises(UserError, match=r"config \S+config.py:1: "):
    load.read(str(tmp_path / "config.py"))


@pytest.mark.parametrize(
  "spec, overrides, words",
  [
    ("{file}:varaint=B/16", [], "did you mean 'variant'"),
    ("{file}:res=big", [], "res must be an integer"),
    ("nowhere.py", [], "no file 'nowhere.py'"),
    ("{folder}", [], "no file"),
    ("{file}", [("lr.x", "3")], "config.lr is 0.001: it has no entry 'x' to set"),
  ],
)
def test_a_mistake_on_the_command_line_is_one_line(file, spec, overrides, words):
  with pytest.raises(UserError, match=words):
    load.read(spec.format(file=file, folder=file.parent), overrides)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '"a"'])
def test_a_json_file_that_is_no_config_is_refused(tmp_path, text):
  path = tmp_path / "config.json"
  path.write_text(text)
  with pytest.raises(UserError, match="is no config of a run"):
    load.from_json(path)


def test_a_json_file_is_read_with_overrides(tmp_path):
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"lr": 1, "model": {"patch_size": [2, 2]}}))
  assert load.from_json(path, [("lr", "2")]) == {"lr": 2, "model": {"patch_size": (2, 2)}}
  path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # As some editors save it.
  assert load.from_json(path, [("lr", "2")]) == {"lr": 2, "model": {"patch_size": (2, 2)}}


def test_differences_name_the_keys():
  old = {"lr": 0.001, "model": {"width": 1}}
  new = {"lr": 0.5, "model": {"width": 1}, "mixup": {"p": 0.2}}
  assert load.differences(old, new) == ["config.lr: 0.001 there, 0.5 here", "config.mixup: only here"]
  assert load.differences(old, old) == []


def test_references_and_frozen_config_dicts_are_resolved(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(
    "import ml_collections\n"
    "def get_config(arg=None):\n"
    "  config = ml_collections.ConfigDict(dict(lr=0.1))\n"
    "  config.wd = config.get_ref('lr') * 2\n"
    "  return ml_collections.FrozenConfigDict(config)\n"
  )
  assert load.read(str(path)) == {"lr": 0.1, "wd": 0.2}
  assert isinstance(load.read(str(path)), dict)
  assert not isinstance(load.read(str(path)), ml_collections.ConfigDict)
