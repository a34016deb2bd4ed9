"""Simulated pods: several processes train one job as one does, and one that is killed, paused or slow is dealt with."""

import contextlib
import json
import math
import re
import signal
import socket
import time

import numpy as np
import pytest

from core.testing import trainer

TRAINER = "projects.vit.train"
OPTIONS = (
  "--config=digits",
  "--config.model.depth=1",
  "--config.model.width=16",
  "--config.model.num_heads=2",
  "--config.log_training_steps=1",
  "--config.sharding_strategy=[('.*', 'fsdp(min_size_to_shard_mb=0)')]",
)
ENV = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # Nearly all the time is XLA compiling programs for a few steps.
LOST = 4  # The exit status where another process is lost.


@pytest.fixture
def start():
  """Starts a pod: as many processes as asked for, one job, killed with the test."""
  with contextlib.ExitStack() as ending:

    def start(count, *options, last=()):
      coordinator = f"localhost:{trainer.free_port()}"
      pod = []
      for i in range(count):
        flags = (f"--coordinator={coordinator}", f"--process_id={i}", f"--processes={count}", "--lost_after=10")
        more = last if i == count - 1 else ()
        pod.append(trainer.start(TRAINER, *OPTIONS, *options, *flags, *more, env=ENV))
        ending.callback(pod[-1].communicate)
        ending.callback(pod[-1].kill)
      return pod

    yield start


def wait_for_step(pod, step):
  for line in pod[0].stdout:
    if line.startswith(f"step {step}/"):
      return
  raise AssertionError(f"no step {step}")


def ends(pod, *, besides=(), timeout=120):
  """Returns exit statuses and outputs of all processes but those at `besides`."""
  found = [(p.communicate(timeout=timeout)[0], p.returncode) for i, p in enumerate(pod) if i not in besides]
  return [status for _, status in found], [output for output, _ in found]


def name(index):
  return f"process {index} ({socket.gethostname()})"


def assert_written_once(checkpoint, by):
  """Holds that no process wrote much more than its share, and all of them together each array once.

  How often a process writes its tree of keys again depends on its threads: a small share may double.
  """
  seal = json.loads((checkpoint / "integrity.json").read_text())
  arrays = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in seal["arrays"].values())
  written = [
    sum(size for file, (size, _) in seal["files"].items() if file.startswith(f"ocdbt.process_{i}/d/"))
    for i in range(by)
  ]
  assert arrays <= sum(written) < 1.5 * arrays
  assert max(written) < 4 * arrays / by


def test_a_pod_of_eight_resumed_as_four_and_as_two_ends_with_the_numbers_of_one_process(start, tmp_path):
  steps = ("--config.total_steps=24", "--config.evals.test.log_steps=12", "--config.ckpt_steps=4")
  status, output = trainer.run(TRAINER, *OPTIONS, *steps, "--cpu_devices=2", f"--workdir={tmp_path / 'one'}", env=ENV)
  assert status == 0, output
  steps += (f"--workdir={tmp_path / 'pod'}",)

  eight = start(8, *steps)
  wait_for_step(eight, 1)
  for _ in range(3):  # Slow, and not accused of anything.
    eight[5].send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    eight[5].send_signal(signal.SIGCONT)
  wait_for_step(eight, 9)  # Then step 4 is saved.
  eight[0].send_signal(signal.SIGKILL)
  statuses, outputs = ends(eight, besides=[0])
  assert statuses == [LOST] * 7, outputs
  for output in outputs:
    assert f"error: {name(0)} is gone: its connection broke; start all again with --workdir=" in output
  assert_written_once(min((tmp_path / "pod" / "checkpoints").glob("[0-9]"), key=lambda path: path.name), by=8)

  four = start(4, *steps)
  wait_for_step(four, 13)
  four[2].send_signal(signal.SIGSTOP)
  statuses, outputs = ends(four, besides=[2])
  assert statuses == [LOST] * 3, outputs
  for output in outputs:
    assert f"error: {name(2)} is lost: no sign of life for 10 s; start all again" in output

  two = start(2, *steps)
  statuses, outputs = ends(two)
  assert statuses == [0, 0], outputs
  assert "resumed after step" in outputs[0]
  assert "done: results in" in outputs[0]
  one, pod = (trainer.repeatable_metrics(tmp_path / name) for name in ("one", "pod"))
  assert [line["step"] for line in pod] == [line["step"] for line in one]
  for a, b in zip(pod, one):
    assert a.keys() == b.keys()
    np.testing.assert_allclose([a[key] for key in a], [b[key] for key in a], rtol=2e-4, atol=1e-5)


def test_sigterm_to_one_process_stops_both_after_the_same_step(start, tmp_path):
  pod = start(2, "--config.total_steps=100000", f"--workdir={tmp_path / 'run'}")
  wait_for_step(pod, 5)
  pod[1].send_signal(signal.SIGTERM)
  statuses, outputs = ends(pod)
  assert statuses == [75, 75], outputs
  (saved,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
  for output in outputs:
    assert f"preempted after step {int(saved):,}" in output


def test_processes_with_different_configs_are_refused_before_anything_is_written(start, tmp_path):
  statuses, outputs = ends(start(2, f"--workdir={tmp_path / 'run'}", last=("--config.lr=0.5",)))
  assert statuses == [2, 2]
  for output in outputs:
    assert re.search(
      rf"there is {re.escape(name(0))}, here is {re.escape(name(1))}: config.lr: .* there, 0.5 here", output
    )
  assert not (tmp_path / "run").exists()
