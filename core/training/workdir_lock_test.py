import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from etils import epath

from core.errors import UserError
from core.testing import bucket
from core.training import workdir_lock

# Holds a workdir until its standard input ends; says "held", or the line of the refusal.
PROGRAM = """
import sys
from core.errors import UserError
from core.training import workdir_lock
workdir_lock.BEAT_SECONDS = 0.05
sys.stdin.readline()
try:
  with workdir_lock.held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
except UserError as error:
  print(error, flush=True)
"""


def start(workdir, go=True):
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, str(workdir)], stdin=-1, stdout=-1, env=environment, text=True
  )
  if go:
    process.stdin.write("\n")
    process.stdin.flush()
  return process


def end(process):
  process.stdin.close()
  process.wait(60)
  process.stdout.close()


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(workdir_lock, "BEAT_SECONDS", 0.05)
  monkeypatch.setattr(workdir_lock, "SILENT_SECONDS", 1.0)
  monkeypatch.setattr(workdir_lock, "_SETTLE_SECONDS", 0.2)


def refused(workdir):
  with pytest.raises(UserError) as e, workdir_lock.held(workdir):
    pass
  assert "\n" not in str(e.value)
  return str(e.value)


def test_a_second_job_is_refused_with_host_and_process_and_the_first_leaves_nothing_behind(tmp_path):
  first = start(tmp_path)
  assert first.stdout.readline() == "held\n"
  line = refused(tmp_path)
  assert line.startswith(f"workdir {tmp_path} is in use by process {first.pid} on {os.uname().nodename} (since 20")
  assert line.endswith("; stop that job, or choose another workdir")
  end(first)
  assert os.listdir(tmp_path) == []
  with workdir_lock.held(tmp_path):
    assert os.listdir(tmp_path) == ["lock.json"]
    assert f"process {os.getpid()} on" in refused(tmp_path)


def test_a_killed_job_is_taken_over_at_once_even_before_its_parent_has_noticed(tmp_path):
  first = start(tmp_path)
  assert first.stdout.readline() == "held\n"
  os.kill(first.pid, signal.SIGKILL)
  os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # Dead, and not yet collected.
  began = time.monotonic()
  with workdir_lock.held(tmp_path):
    assert time.monotonic() - began < 5
    assert json.loads((tmp_path / "lock.json").read_text())["process"] == os.getpid()
  end(first)


def test_a_stopped_job_lives(tmp_path):
  first = start(tmp_path)
  assert first.stdout.readline() == "held\n"
  os.kill(first.pid, signal.SIGSTOP)
  assert f"process {first.pid}" in refused(tmp_path)
  os.kill(first.pid, signal.SIGCONT)
  end(first)


def test_a_process_number_that_was_given_anew_is_another_process(tmp_path):
  first = start(tmp_path)
  assert first.stdout.readline() == "held\n"
  path = tmp_path / "lock.json"
  lock = json.loads(path.read_text())
  for changed in ({"process": os.getpid()}, {"started": 1}):
    path.write_text(json.dumps(lock | changed))
    with workdir_lock.held(tmp_path):
      pass
  end(first)


@pytest.mark.parametrize("left", ["nothing", "a lock of a dead process", "half a lock"])
def test_of_many_that_start_at_once_one_gets_it(tmp_path, left):
  if left == "a lock of a dead process":
    first = start(tmp_path)
    assert first.stdout.readline() == "held\n"
    first.kill()
    end(first)
    assert (tmp_path / "lock.json").exists()
  elif left == "half a lock":
    (tmp_path / "lock.json").write_text('{"host": "a", "proc')
  processes = [start(tmp_path, go=False) for _ in range(6)]
  for process in processes:
    process.stdin.write("\n")
  for process in processes:
    process.stdin.flush()
  lines = [process.stdout.readline() for process in processes]
  assert lines.count("held\n") == 1
  holder = processes[lines.index("held\n")].pid
  assert sum(f"in use by process {holder} on" in line for line in lines) == 5
  for process in processes:
    end(process)


def test_threads_that_take_turns_never_hold_it_together(tmp_path):
  inside, most = [], []

  def take(_):
    for _ in range(20):
      try:
        with workdir_lock.held(tmp_path):
          inside.append(1)
          most.append(len(inside))
          inside.pop()
      except UserError:
        pass

  with ThreadPoolExecutor(4) as pool:
    list(pool.map(take, range(4)))
  assert max(most) == 1


def elsewhere(workdir, **changed):
  """Makes the lock one of another machine."""
  changed = {"host": "far", "machine": "far 1"} | changed
  workdir_lock._exchange(epath.Path(workdir), lambda found: dataclasses.replace(found, **changed))


def left_by_another_machine(tmp_path):
  first = start(tmp_path)
  assert first.stdout.readline() == "held\n"
  first.kill()
  end(first)
  elsewhere(tmp_path)


def test_a_silent_job_of_another_machine_is_taken_over_after_a_while(tmp_path, quick, capsys):
  left_by_another_machine(tmp_path)
  with workdir_lock.held(tmp_path):
    assert json.loads((tmp_path / "lock.json").read_text())["process"] == os.getpid()
  assert " on far (since 20" in capsys.readouterr().err


def test_a_job_of_another_machine_that_gives_a_sign_of_life_is_not(tmp_path, quick, monkeypatch):
  left_by_another_machine(tmp_path)
  with ThreadPoolExecutor() as pool:
    line = pool.submit(refused, tmp_path)
    time.sleep(0.4)
    elsewhere(tmp_path, beats=7)
    assert " on far (since 20" in line.result()


def test_a_job_whose_workdir_was_taken_over_meanwhile_is_told_and_leaves_the_lock_alone(tmp_path, quick):
  with workdir_lock.held(tmp_path) as lock:
    lock.check()
    elsewhere(tmp_path, token="another")
    lock._thread.join(30)  # The heart stops when it finds another's lock.
    with pytest.raises(UserError, match=r"^workdir .* was taken over by process \d+ on far "):
      lock.check()
  assert json.loads((tmp_path / "lock.json").read_text())["token"] == "another"


def test_the_heart_beats(tmp_path, quick):
  with workdir_lock.held(tmp_path):
    deadline = time.monotonic() + 30
    while json.loads((tmp_path / "lock.json").read_text() or "{}").get("beats", 0) < 3:
      assert time.monotonic() < deadline


def test_processes_of_one_job_hold_it_once(tmp_path):
  with workdir_lock.held(tmp_path) as lock, workdir_lock.held(tmp_path, first=False) as other:
    assert lock is not None
    assert other is None
    assert os.listdir(tmp_path) == ["lock.json"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "file").touch()
  assert refused(tmp_path / "file") == f"workdir {tmp_path}/file cannot be written: Not a directory"
  assert refused(tmp_path / "no") == f"workdir {tmp_path}/no cannot be written: No such file or directory"


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
  (tmp_path / "victim").write_text("of the person")
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "lock.json").symlink_to(tmp_path / "victim")
  assert "cannot be written: Too many levels of symbolic links" in refused(tmp_path / "run")
  assert (tmp_path / "victim").read_text() == "of the person"


def test_in_a_bucket_one_of_those_that_start_at_once_gets_it_and_a_silent_one_is_taken_over(quick):
  def take(_):
    try:
      with workdir_lock.held("gs://models/run"):
        time.sleep(1)
      return "held"
    except UserError as error:
      return str(error)

  with bucket.serving() as served:
    with ThreadPoolExecutor(3) as pool:
      lines = sorted(pool.map(take, range(3)))
    assert lines[0] == "held"
    for line in lines[1:]:
      assert line.startswith(f"workdir gs://models/run is in use by process {os.getpid()} on ")
    assert served.objects == {}
    left = workdir_lock.Holder(host="far", machine="far", process=1, started=1, token="t", since="20")
    (epath.Path("gs://models/run") / "lock.json").write_text(json.dumps(dataclasses.asdict(left)))
    assert take(0) == "held"
