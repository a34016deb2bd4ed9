"""Whatever has become of a file in a workdir: a start sets it aside with a line, or refuses it with one."""

import contextlib
import dataclasses
import json
import os

import pytest
from etils import epath

from core.errors import UserError
from core.training import metrics, provenance, workdir_lock

CONFIG = {"lr": 0.1, "model": {"width": 16, "pool_type": "gap"}, "evals": {"val": {"pp_fn": "decode|résize(2)"}}}
DAMAGE = ["", "[]", "{}", "null", "3", '"text"', "[3]", "[null]", "[[]]", "[" * 100_000, '{"step": 1}', "\x00\ud800"]


def start(workdir):
  """Does what a start does with the files of its workdir; returns the line of the evaluation of step 2 in its log."""
  provenance.check_workdir(workdir, CONFIG)
  with workdir_lock.held(workdir):
    provenance.record_run(workdir, CONFIG, project="vit", start_step=2)
    log = metrics.MetricsLog(workdir / "metrics.jsonl", resume_step=2)
    log.close()
    return log.line(2, "val/prec@1") or {}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lock, "SILENT_SECONDS", 0.01)
  monkeypatch.setattr(provenance, "describe", lambda: {"command": ["train"], "devices": ["cpu"]})
  start(tmp_path)
  log = metrics.MetricsLog(tmp_path / "metrics.jsonl")
  for step in (1, 2):
    log.write(step, {"training_loss": step / 7, "val/prec@1": 0.5})
  log.close()
  dead = dataclasses.replace(workdir_lock.Holder.myself(), process=2**22 + 1, started=7)
  (tmp_path / "lock.json").write_text(json.dumps(dataclasses.asdict(dead)))
  return tmp_path


def outcome(workdir, capfd):
  """Starts, and returns the line of the refusal or the warnings; a traceback fails the test."""
  with contextlib.suppress(UserError):
    start(workdir)
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith(("warning: ", "workdir ")) for line in lines), lines
    return lines
  capfd.readouterr()
  return ["refused"]


def restore(workdir, files):
  for path in workdir.iterdir():
    path.unlink()
  for name, content in files.items():
    (workdir / name).write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.jsonl", "lock.json"])
def test_a_file_that_is_cut_or_has_a_byte_changed_is_set_aside_or_refused(workdir, name, capfd):
  files = {path.name: path.read_bytes() for path in workdir.iterdir()}
  whole = files[name]
  for at in range(0, len(whole), max(1, len(whole) // 25)):
    for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]):
      restore(workdir, {**files, name: content})
      said = outcome(workdir, capfd)
      if said != ["refused"]:
        assert json.loads((workdir / "config.json").read_text()) == CONFIG
        assert json.loads((workdir / "run.json").read_text())[-1]["start_step"] == 2
        assert not (workdir / "lock.json").exists()


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.jsonl", "lock.json"])
def test_a_file_that_holds_something_else_is_set_aside_or_refused(workdir, name, content, capfd):
  content = content.encode(errors="surrogatepass")
  (workdir / name).write_bytes(content)
  said = outcome(workdir, capfd)
  if name == "config.json":
    assert said == ["refused"]
  elif name == "run.json" and content not in (b"[]",):
    (line,) = said
    assert line.startswith(f"warning: workdir {workdir}: run.json is not ")
    assert line.endswith("; set aside as run.json.damaged")
    assert (workdir / "run.json.damaged").read_bytes() == content
    assert len(json.loads((workdir / "run.json").read_text())) == 1
  else:
    assert said == []  # A line without its end is one that a kill cut; a lock that names nobody holds nobody off.


@pytest.mark.parametrize("name", ["config.json", "run.json", "metrics.jsonl", "lock.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(workdir, name):
  (workdir / name).unlink()
  os.mkfifo(workdir / name)
  with pytest.raises(UserError, match="no regular file"):
    start(workdir)


def test_damaged_lines_are_left_out_of_the_log_and_kept_beside_it(workdir, capfd):
  path = workdir / "metrics.jsonl"
  good = path.read_bytes()
  path.write_bytes(b'[]\n3\n{"step": "x"}\n{"step": true}\n\xff\n' + good + b'{"step": 3, "tr')
  before = path.read_bytes()
  assert start(workdir)["val/prec@1"] == 0.5
  (line,) = capfd.readouterr().err.splitlines()
  assert line == f"warning: {path}: 5 lines are damaged and left out; set aside as metrics.jsonl.damaged"
  assert path.read_bytes() == good
  assert (workdir / "metrics.jsonl.damaged").read_bytes() == before


@pytest.mark.parametrize(
  "change",
  [
    dict(host=3),
    dict(machine=None),
    dict(process="7"),
    dict(process="\0"),
    dict(started=[]),
    dict(beats=0.5),
    dict(x=1),
  ],
  ids=str,
)
def test_a_lock_of_another_form_holds_nobody_off(workdir, change):
  mine = dataclasses.asdict(workdir_lock.Holder.myself())
  (workdir / "lock.json").write_text(json.dumps({**mine, **change}))
  start(workdir)
  assert not (workdir / "lock.json").exists()


def test_whose_run_it_is_is_read_from_a_good_record_only(workdir):
  assert provenance.project_of(workdir) == "vit"
  for content in ("", "[]", "[3]", "{}", '[{"project": 3}]'):
    (workdir / "run.json").write_text(content)
    assert provenance.project_of(workdir) is None
  os.remove(workdir / "run.json")
  assert provenance.project_of(epath.Path(workdir)) is None
