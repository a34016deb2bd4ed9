"""A run whose writes fail, or that is stopped at any stage of its life, ends as if nothing had been: the same bits.

The long form, every write with every error and every stage with both signals, is `./bazelw run //tools:faults`.
"""

import errno
import signal
from pathlib import Path

import numpy as np
import pytest

from core.checkpoint import pretrained
from core.testing import faults, trainer
from core.testing.faults import STEPS, TINY, Fault, Life
from core.training import cli
from projects.vit.train import TASK

TRAINER = "projects.vit.train"
EACH_STEP = "--config.ckpt_steps=1"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache):
  workdir = cache / "whole"
  assert start(workdir, cache) == 0
  return workdir


def start(workdir, cache, *options):
  """Runs the trainer in this process; returns its exit status."""
  arguments = [*TINY, *options, f"--workdir={workdir}", f"--cache_dir={cache}"]
  with pytest.raises(SystemExit) as ended:
    cli.main(TASK, project=Path(__file__).parent, default="digits", argv=arguments)
  return ended.value.code


def check_the_same(whole, workdir):
  """Holds that a run ended like the whole one, and left nothing else."""
  assert trainer.differences(whole, workdir) == []
  one, other = (pretrained.load_params(str(each / "params.npz")) for each in (whole, workdir))
  np.testing.assert_equal(one, other)
  assert sorted(path.name for path in workdir.iterdir()) == sorted(path.name for path in whole.iterdir())
  assert all(path.name.isdigit() for path in (workdir / "checkpoints").iterdir())


# Each ends a start, with its status; the checkpoint's own do not, and come one a checkpoint.
AT_THE_START = [
  (Fault("os.mkdir", "", errno.EACCES), 2, "cannot be written: Permission denied"),
  (Fault("fsync", r"\.writable"), 2, "cannot be written: No space left on device"),
  (Fault("os.remove", r"\.writable", errno.EINTR), 2, "cannot be written: Interrupted system call"),
  (Fault("open", r"lock\.json", errno.EINTR), 2, "cannot be written: Interrupted system call"),
  (Fault("open", r"\.config\.json\.N\.part"), 2, "cannot be written: No space left on device"),
  (Fault("os.rename", r"\.run\.json\.N\.part", errno.EACCES), 2, "cannot be written: Permission denied"),
  (Fault("fsync", r"\.metrics\.jsonl\.N\.part", errno.EINTR), 2, "(Interrupted system call)"),
]
TMP = r"\d+\.orbax-checkpoint-tmp"
IN_CHECKPOINTS = [
  Fault("os.mkdir", r"checkpoints", errno.EACCES),
  Fault("os.mkdir", r"checkpoints/2\.orbax-checkpoint-tmp", errno.EACCES),
  Fault("open", r"checkpoints/3\.orbax-checkpoint-tmp/_CHECKPOINT_METADATA", errno.EINTR),
  Fault("room", r"checkpoints/4\.orbax-checkpoint-tmp"),
  Fault("open", r"checkpoints/5\.orbax-checkpoint-tmp/_METADATA"),
  Fault("fsync", r"checkpoints/6\.orbax-checkpoint-tmp/\.integrity\.json\.N\.part"),
  Fault("os.rename", r"checkpoints/7\.orbax-checkpoint-tmp/\.integrity\.json\.N\.part", errno.EACCES),
  Fault("os.rename", r"checkpoints/8\.orbax-checkpoint-tmp", errno.EACCES),
  Fault("os.mkdir", r"checkpoints/9\.orbax-checkpoint-tmp/array_metadatas", errno.EINTR),
]
AT_THE_END = [Fault("fsync", r"\.params\.npz\.N\.part"), Fault("os.rename", r"\.params\.npz\.N\.part", errno.EACCES)]


def test_a_run_whose_writes_fail_ends_with_the_same_bits(tmp_path, whole, cache, capfd):
  workdir = tmp_path / "run"
  for fault, status, words in AT_THE_START:
    with faults.failing(workdir, [fault]):
      assert start(workdir, cache, EACH_STEP) == status, fault
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
  with faults.failing(workdir, [*IN_CHECKPOINTS, AT_THE_END[0]]) as failing:
    assert start(workdir, cache, EACH_STEP) == 1
  assert failing.faults == []
  *warnings, error = capfd.readouterr().err.splitlines()
  told = [step for step in range(1, STEPS) if any(f"checkpoint of step {step} could not" in line for line in warnings)]
  assert told == list(range(1, 10))
  assert all(line.startswith("warning: ") for line in warnings)
  assert error.startswith("error: ")
  assert error.endswith(f"the last good checkpoint is {workdir}/checkpoints/{STEPS}; run: {workdir}")
  with faults.failing(workdir, AT_THE_END[1:]):
    assert start(workdir, cache, EACH_STEP) == 1
  assert start(workdir, cache, EACH_STEP) == 0
  check_the_same(whole, workdir)


def test_a_run_that_is_stopped_at_each_stage_ends_with_the_same_bits(tmp_path, whole, cache):
  workdir = str(tmp_path / "run")
  both = (int(signal.SIGINT), int(signal.SIGTERM))
  each = [Life(workdir, stage, both[i % 2]) for i, stage in enumerate(faults.STAGES)]
  each.insert(4, Life(workdir, "checkpoint", both[1], twice=True))
  each.append(Life(workdir))
  for life, (status, said) in zip(each, faults.lives(TRAINER, [*TINY, f"--cache_dir={cache}"], each), strict=True):
    assert "Traceback" not in said, said
    assert status == {0: 0, signal.SIGINT: 130, signal.SIGTERM: 75}[life.signal], said
    line = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM", 0: "done: results in"}[life.signal]
    if life.stage == "final save":
      line = "done: results in"  # It is so near its end that it goes there.
    elif life.signal and life.stage in ("step", "evaluation", "checkpoint") and not life.twice:
      line = "preempted after step "
    assert said.splitlines()[-1].startswith(line), said
  check_the_same(whole, Path(workdir))
