"""The default run, as a person starts it: what it reaches, what it says, what it leaves alone."""

import time

from core.testing import trainer


def test_the_default_run_reaches_97_percent_and_says_where_it_lies(tmp_path):
  code = "import atexit, runpy, sys; atexit.register(lambda: print('tensorflow' in sys.modules, flush=True)); "
  code += "runpy.run_module('projects.vit.train', run_name='__main__', alter_sys=True)"
  process = trainer.start_code(code, f"--workdir={tmp_path / 'run'}")
  lines, finished = [], time.monotonic()
  for line in process.stdout:
    lines.append(line.rstrip())
    finished = time.monotonic()
  assert process.wait() == 0, lines
  assert time.monotonic() - finished < 3
  imports_tensorflow = lines.pop()
  assert imports_tensorflow == "False"
  assert lines[-1] == f"done: results in {tmp_path / 'run'}"
  accuracy = [line["test/prec@1"] for line in trainer.repeatable_metrics(tmp_path / "run") if "test/prec@1" in line]
  assert accuracy[-1] >= 0.97
  # What will run on what, in under ten lines, and no library's warnings among them.
  introduction = lines[: next(i for i, line in enumerate(lines) if line.startswith("step 1/"))]
  assert len(introduction) < 10
  assert [line.split()[0] for line in introduction] == ["vit", "model", "device", "data", "train", "run", "compiled"]
  assert all(line.startswith(("step ", "done: ")) for line in lines[len(introduction) :])


def test_four_devices_with_fsdp_follow_the_losses_of_one(tmp_path):
  options = ("--config=digits", "--config.total_steps=20", "--config.log_training_steps=1", "--config.model.depth=2")
  fsdp = "--config.sharding_strategy=[('.*', 'fsdp(min_size_to_shard_mb=0)')]"
  for devices in (1, 4):
    workdir = f"--workdir={tmp_path / str(devices)}"
    status, output = trainer.run("projects.vit.train", *options, fsdp, f"--cpu_devices={devices}", workdir)
    assert status == 0, output
  one, four = (
    [line["training_loss"] for line in trainer.repeatable_metrics(tmp_path / d) if "lr" in line] for d in "14"
  )
  assert len(one) == len(four) == 20
  assert max(abs(a - b) for a, b in zip(one, four)) < 1e-3
