"""Two processes train one job as one process with two devices does; when one is killed the other says so and ends."""

import signal
import socket
import time

import numpy as np

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


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def start_two(*options):
  coordinator = f"localhost:{free_port()}"
  return [
    trainer.start(TRAINER, *OPTIONS, *options, f"--coordinator={coordinator}", f"--process_id={i}", "--processes=2")
    for i in range(2)
  ]


def test_two_processes_train_as_one_with_two_devices(tmp_path):
  steps = ("--config.total_steps=30", "--config.evals.test.log_steps=15", "--config.ckpt_steps=20")
  outputs = [p.communicate(timeout=240)[0] for p in start_two(*steps, f"--workdir={tmp_path / 'two'}")]
  assert "done: results in" in outputs[0], outputs
  status, output = trainer.run(TRAINER, *OPTIONS, *steps, "--cpu_devices=2", f"--workdir={tmp_path / 'one'}")
  assert status == 0, output
  two, one = (trainer.repeatable_metrics(tmp_path / name) for name in ("two", "one"))
  assert [line["step"] for line in two] == [line["step"] for line in one]
  for a, b in zip(two, one):
    assert a.keys() == b.keys()
    np.testing.assert_allclose([a[key] for key in a], [b[key] for key in a], rtol=2e-4, atol=1e-5)


def test_when_a_process_is_killed_the_other_ends_with_a_clear_line(tmp_path):
  first, second = start_two("--config.total_steps=100000", f"--workdir={tmp_path / 'run'}")
  for line in first.stdout:
    if line.startswith("step 5/"):
      break
  second.send_signal(signal.SIGKILL)
  began = time.monotonic()
  output, _ = first.communicate(timeout=90)
  assert time.monotonic() - began < 60
  assert first.returncode not in (0, None)
  assert "another process of this job is gone" in output
  second.communicate()


def test_sigterm_to_one_process_stops_both_after_the_same_step(tmp_path):
  first, second = start_two("--config.total_steps=100000", f"--workdir={tmp_path / 'run'}")
  for line in first.stdout:
    if line.startswith("step 5/"):
      break
  second.send_signal(signal.SIGTERM)
  outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
  assert [first.returncode, second.returncode] == [75, 75], outputs
  (saved,) = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
  for output in outputs:
    assert f"preempted after step {int(saved):,}" in output
