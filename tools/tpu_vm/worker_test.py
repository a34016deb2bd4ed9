"""What the scripts of a worker answer, and what its trainers' exit statuses mean for the job."""

import subprocess

import pytest

from core import errors
from core.cluster import preemption, processes
from core.training import cli
from tools.tpu_vm import worker
from tools.tpu_vm.worker import State


def test_the_statuses_are_the_trainers_own():
  assert worker.USER_ERROR == errors.EXIT_USER_ERROR
  assert worker.NON_FINITE == cli.EXIT_NON_FINITE
  assert worker.LOST_PROCESS == processes.EXIT_LOST_PROCESS
  assert worker.PREEMPTED == preemption.EXIT_CODE


def test_answers_are_found_among_other_lines_by_host():
  output = "SSH: Attempting\ntpu_vm: w-1 running\nx tpu_vm: w-9 none\ntpu_vm: w-0 ended 75\ntpu_vm: w-2 lost\n"
  assert worker.states(output) == [State("w-0", "ended", 75), State("w-1", "running"), State("w-2", "lost")]


@pytest.mark.parametrize(
  "answers, status",
  [
    (["ended 0", "ended 0"], 0),
    (["ended 75", "ended 75"], worker.PREEMPTED),
    (["ended 4", "ended 137"], worker.PREEMPTED),  # Killed, for lack of memory say, and missed by the other.
    (["ended 0", "lost"], worker.PREEMPTED),
    (["ended 4", "none"], worker.PREEMPTED),
    (["ended 4", "ended 2"], worker.USER_ERROR),  # Mistakes of one, a file that is only there, end the others.
    (["ended 3", "ended 4"], worker.NON_FINITE),
    (["ended 4", "ended 1"], 1),  # A fault of ours: its traceback is in that worker's log.
    (["ended 75", "stopped"], None),
  ],
)
def test_one_status_is_made_of_many(answers, status):
  states = worker.states("".join(f"tpu_vm: w-{number} {answer}\n" for number, answer in enumerate(answers)))
  assert worker.outcome(states) == status


def shell(script: str, home) -> str:
  command = ["bash", "-c", script]
  return subprocess.run(
    command, env={"HOME": str(home), "PATH": f"{home}/bin:/usr/bin:/bin"}, stdout=-1, text=True
  ).stdout


def test_a_bucket_is_mounted_once_and_lets_the_lock_go(tmp_path):
  (tmp_path / "bin").mkdir()
  # A mount that stays behind, as gcsfuse does.
  for name, text in {
    "gcsfuse": 'echo "$@" >>$HOME/mounts; sleep 5 >/dev/null &',
    "mountpoint": "test -e $HOME/mounts",
  }.items():
    (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
    (tmp_path / "bin" / name).chmod(0o755)
  (tmp_path / "x_bundle").mkdir()
  (tmp_path / "x_bundle/start").write_text('#!/bin/sh\necho "$@"\n')
  (tmp_path / "x_bundle/start").chmod(0o755)
  subprocess.run(["tar", "czf", "x_bundle.tar.gz", "x_bundle"], cwd=tmp_path, check=True)
  start = worker.start("x_bundle", ["--config=a"], workdir="gs://my-bucket/runs/a b/", env={}, setup="")
  for _ in range(2):
    shell(start, tmp_path)
    assert shell(worker.follow(), tmp_path) == f"1:--config=a --workdir={tmp_path}/tpu_vm/buckets/my-bucket/runs/a b\n"
    assert worker.states(shell(worker.report(), tmp_path))[0].code == 0
  (mount,) = (tmp_path / "mounts").read_text().splitlines()
  assert mount.endswith(f"my-bucket {tmp_path}/tpu_vm/buckets/my-bucket")
  assert "--metadata-cache-ttl-secs=0" in mount


@pytest.mark.parametrize(
  "setup, workdir, line",
  [
    ("exit 7", "/a", "error: --setup failed"),
    ("", "gs://b/a", "error: gcsfuse is not installed on this worker; have --setup install it"),
    ("", "/a", "error: the bundle is damaged; copy it again"),
  ],
)
def test_what_is_wrong_on_a_worker_is_in_its_log_and_the_users_to_mend(tmp_path, setup, workdir, line):
  shell(worker.start("x_bundle", [], workdir=workdir, env={}, setup=setup), tmp_path)
  assert shell(worker.follow(), tmp_path).splitlines()[-1].partition(":")[2] == line
  assert worker.states(shell(worker.report(), tmp_path))[0].code == worker.USER_ERROR
