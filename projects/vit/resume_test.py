"""A job killed at any moment and started again ends as if it had never been stopped: the same bits.

The long form, with as many kills as you like, is `./bazelw run //tools:torture`.
"""

import random
import signal
import socket
import time
from pathlib import Path

import pytest

from core.testing import generated_tfds, trainer
from core.training import cli
from projects.vit.train import TASK

TRAINER = "projects.vit.train"
# Shuffling, random crops, RandAugment, mixup and dropout, all at once; a checkpoint every 4 steps.
OPTIONS = (
  "--config.total_steps=40",
  "--config.ckpt_steps=4",
  "--config.log_training_steps=1",
  "--config.model.dropout=0.1",
)
TINY = ("--config.model.depth=1", "--config.model.width=16", "--config.model.mlp_dim=32", "--config.model.num_heads=2")


def kill_once(options, workdir, rng):
  """Starts the job and kills it: after a random step, and every other time as soon as a checkpoint is being written."""
  process = trainer.start(TRAINER, *options, f"--workdir={workdir}")
  in_write = rng.random() < 0.5
  steps = rng.randint(1, 12)
  for line in process.stdout:
    if line.startswith("step "):
      steps -= 1
      if steps <= 0:
        break
  while in_write and process.poll() is None and not list(workdir.glob("checkpoints/*tmp*")):
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert (workdir / "lock.json").exists()  # Nobody was left to remove it; the next start takes it over.


@pytest.mark.parametrize("source", ["in memory", "tfds"])
def test_resume_is_bit_exact_after_sigkill(source, tmp_path, monkeypatch):
  if source == "tfds":
    generated_tfds.write(tmp_path / "data", "cifar10")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    config = ("--config=cifar:runlocal", "--config.input.shuffle_buffer_size=40")
  else:
    config = ("--config=digits", *TINY)
  options = (*config, *OPTIONS, f"--cache_dir={tmp_path / 'cache'}")
  status, output = trainer.run(TRAINER, *options, f"--workdir={tmp_path / 'whole'}")
  assert status == 0, output

  rng = random.Random(0)
  for _ in range(3 if source == "in memory" else 2):  # A start with TensorFlow takes twice as long.
    kill_once(options, tmp_path / "killed", rng)
  status, output = trainer.run(TRAINER, *options, f"--workdir={tmp_path / 'killed'}")
  assert status == 0, output
  assert "resumed after step" in output
  assert trainer.differences(tmp_path / "whole", tmp_path / "killed") == []
  assert not (tmp_path / "killed" / "lock.json").exists()


def test_a_second_job_is_refused_and_sigterm_ends_the_first_in_good_order(tmp_path, capfd):
  options = ("--config=digits", *TINY, "--config.total_steps=100000", "--workdir", str(tmp_path / "run"))
  process = trainer.start(TRAINER, *options, "--config.log_training_steps=1")
  for line in process.stdout:
    if line.startswith("step 5/"):
      break
  with pytest.raises(SystemExit) as ended:
    cli.main(TASK, project=Path(__file__).parent, default="digits", argv=[*options, "--config.log_training_steps=1"])
  assert ended.value.code == 2
  holder = f"process {process.pid} on {socket.gethostname()}"
  (line,) = capfd.readouterr().err.splitlines()
  assert line.startswith(f"error: workdir {tmp_path / 'run'} is in use by {holder} ")

  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 75
  last = output.splitlines()[-1]
  assert "preempted after step" in last
  assert f"--workdir={tmp_path / 'run'}" in last
  assert last.count(str(tmp_path / "run")) == 1
  (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
  assert int(saved.name) >= 5
  assert f"preempted after step {int(saved.name):,}" in last
  assert not (tmp_path / "run" / "lock.json").exists()


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path):
  for name, seed in (("one", 1), ("again", 1), ("other", 2)):
    options = ("--config=digits", *TINY, *OPTIONS, f"--config.seed={seed}", f"--workdir={tmp_path / name}")
    with pytest.raises(SystemExit) as ended:
      cli.main(TASK, project=Path(__file__).parent, default="digits", argv=options)
    assert ended.value.code == 0
  assert trainer.differences(tmp_path / "one", tmp_path / "again") == []
  assert trainer.differences(tmp_path / "one", tmp_path / "other")
