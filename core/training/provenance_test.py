import dataclasses
import json
import sys

import pytest

from core.errors import UserError
from core.masking import masked_tree
from core.training import provenance

CONFIG = {"lr": 0.1}


def refused(workdir, config=CONFIG):
  with pytest.raises(UserError) as e:
    provenance.check_workdir(workdir, config)
  assert "\n" not in str(e.value)
  return str(e.value)


def test_each_start_is_recorded_and_the_workdir_is_that_config_s(tmp_path):
  workdir = tmp_path / "new" / "run"
  for step in (0, 7):
    provenance.check_workdir(workdir, CONFIG)
    provenance.record_run(workdir, CONFIG, project="vit", start_step=step)
  starts = json.loads((workdir / "run.json").read_text())
  assert [(start["project"], start["start_step"]) for start in starts] == [("vit", 0), ("vit", 7)]
  assert "was made by another config (" in refused(workdir, {"lr": 0.2})


@pytest.mark.parametrize("name", ["config.json", "run.json"])
@pytest.mark.parametrize(
  "content, words",
  [
    (b"{", " is not JSON; choose another workdir"),
    (b"\xff", " is not JSON; choose another workdir"),
    (b"3", " is not what a run writes; choose another workdir"),
    (None, " cannot be read (Is a directory)"),
  ],
)
def test_files_of_those_names_that_are_no_run_s_are_left_alone(tmp_path, name, content, words):
  (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_bytes(content)
  assert refused(tmp_path) == f"workdir {tmp_path}: {name}{words}"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").touch()
  assert refused(tmp_path / "file" / "run") == f"workdir {tmp_path}/file/run cannot be written: Not a directory"
  with pytest.raises(UserError, match=r"cannot be written: "):
    provenance.record_run(tmp_path / "no" / "run", CONFIG, project="vit", start_step=0)


def test_a_config_that_differs_in_much_is_told_in_a_line_that_is_not_too_long(tmp_path):
  config = {f"key_{i}": "there " * 100 for i in range(5)}
  provenance.check_workdir(tmp_path, config)
  provenance.record_run(tmp_path, config, project="vit", start_step=0)
  line = refused(tmp_path, {name: "here " * 100 for name in config})
  assert line.startswith("workdir /")
  assert " was made by another config (config.key_0: 'there" in line
  assert line.endswith("choose another")
  assert len(line) <= 300


def test_what_is_secret_in_a_url_is_not_recorded_and_a_newer_signature_is_the_same_run(tmp_path, monkeypatch):
  def config(user="user:hunter2@", signature="hunter2", host="host"):
    pp = f'decode|tokenize(model="https://{host}/v.txt?token={signature}", length=16)'
    return {"model_init": f"https://{user}{host}/w.npz?X-Amz-Signature={signature}&v=2", "input": {"pp": [pp, 3]}}

  monkeypatch.setattr(sys, "argv", ["train", f"--config.model_init={config()['model_init']}", "--x"])
  provenance.check_workdir(tmp_path, config())
  provenance.record_run(tmp_path, config(), project="vit", start_step=0)
  written = "".join(path.read_text() for path in tmp_path.iterdir())
  assert "hunter" not in written
  assert "https://***@host/w.npz?X-Amz-Signature=***&v=2" in json.loads((tmp_path / "config.json").read_text()).values()
  assert json.loads((tmp_path / "run.json").read_text())[0]["command"][1:] == [
    "--config.model_init=https://***@host/w.npz?X-Amz-Signature=***&v=2",
    "--x",
  ]
  provenance.check_workdir(tmp_path, config(signature="newer", user="other@"))
  provenance.check_workdir(tmp_path, masked_tree(config()))  # As the line says that a stopped run ends with.
  line = refused(tmp_path, config(host="another"))
  assert "https://***@host/w.npz" in line
  assert "hunter" not in line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Young:
  """A recipe.

  Attributes:
    lr: a number.
    younger: a key that there was not always.
  """

  lr: float
  younger: int = 3


def test_a_folder_may_be_older_than_a_key_of_the_config(tmp_path):
  provenance.record_run(tmp_path, CONFIG, project="vit", start_step=0)
  provenance.check_workdir(tmp_path, {"lr": 0.1, "younger": 3}, Young)
  with pytest.raises(UserError, match=r"config\.younger: 3 there, 4 here"):
    provenance.check_workdir(tmp_path, {"lr": 0.1, "younger": 4}, Young)
  with pytest.raises(UserError, match=r"config\.lr: 0\.1 there, 0\.2 here"):
    provenance.check_workdir(tmp_path, {"lr": 0.2, "younger": 3}, Young)
