import json

import pytest

from core import config as config_lib
from core.errors import UserError

CONFIG = """
from core import config as config_lib

def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="S/16", runlocal=False, res=224, wd=0.1)
  config = config_lib.ConfigDict()
  config.seed = 0
  config.total_epochs = 2 if arg.runlocal else 90
  config.lr = 1e-3
  config.model = dict(variant=arg.variant, patch_size=(2, 2))
  config.input = dict(batch_size=arg.res)
  config.schedule = dict(warmup_steps=10)
  return config
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return path


def test_arguments_behind_the_colon_have_the_type_of_their_default(file):
  config = config_lib.load(f"{file}:runlocal,variant=B/32,res=8")
  assert (config.total_epochs, config.model.variant, config.input.batch_size) == (2, "B/32", 8)


def test_an_override_changes_one_entry_in_its_own_type(file):
  config = config_lib.load(str(file), [("lr", "1"), ("input.batch_size", "64"), ("model.patch_size", "(4,4)")])
  assert (config.lr, config.input.batch_size, config.model.patch_size) == (1.0, 64, (4, 4))
  assert isinstance(config.lr, float)


def test_a_duration_in_another_unit_replaces_the_one_in_the_file(file):
  config = config_lib.load(str(file), [("total_steps", "20"), ("schedule.warmup_percent", "0.1")])
  assert "total_epochs" not in config
  assert config.schedule.to_dict() == {"warmup_percent": 0.1}


def test_a_known_key_that_the_file_lacks_can_be_set(file):
  config = config_lib.load(str(file), [("mixup.p", "0.5"), ("grad_clip_norm", "1.0")])
  assert (config.mixup.p, config.grad_clip_norm) == (0.5, 1.0)


@pytest.mark.parametrize(
  "spec, overrides, words",
  [
    ("{file}", [("learning_rat", "1")], "learning_rat is not a key of a config"),
    ("{file}", [("lrr", "1")], "did you mean 'lr'"),
    ("{file}", [("inptu.batch_size", "1")], "did you mean 'input'"),
    ("{file}", [("lr", "fast")], "config.lr must be a number"),
    ("{file}", [("seed", "1.5")], "config.seed must be an integer"),
    ("{file}", [("seed", "True")], "config.seed must be an integer"),
    ("{file}", [("input", "3")], "config.input must be a dict"),
    ("{file}", [("mixup", "3")], "config.mixup must be a dict"),
    ("{file}", [("lr.x", "3")], "no entry 'x'"),
    ("{file}:varaint=B/16", [], "did you mean 'variant'"),
    ("{file}:res=big", [], "res must be an integer"),
    ("nowhere.py", [], "no file 'nowhere.py'"),
  ],
)
def test_a_mistake_is_one_line_that_names_the_key(file, spec, overrides, words):
  with pytest.raises(UserError, match=words) as error:
    config_lib.load(spec.format(file=file), overrides)
  assert "\n" not in str(error.value)


def test_a_file_without_get_config_is_refused(tmp_path):
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(UserError, match="no function get_config"):
    config_lib.load(str(tmp_path / "empty.py"))


def test_differences_between_configs_name_the_keys(file):
  old = json.loads(config_lib.to_json(config_lib.load(str(file))))
  new = json.loads(config_lib.to_json(config_lib.load(str(file), [("lr", "0.5"), ("mixup.p", "0.2")])))
  assert config_lib.differences(old, new) == ["config.lr: 0.001 there, 0.5 here", "config.mixup: only here"]
  assert config_lib.differences(old, old) == []
