"""Kills a training job again and again, at random moments and inside checkpoint writes, and compares it bit for bit
with one that was never stopped.

    ./bazelw run //tools:torture -- --kills=25 --source=digits
    ./bazelw run //tools:torture -- --kills=25 --source=memory
    ./bazelw run //tools:torture -- --kills=25 --source=tfds

Prints one JSON object: the kills, at which steps they hit, how many inside a write, and what differs in the end: final
parameters, optimizer state, or metrics.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.testing import standin, trainer

_TRAINER = "projects.vit.train"
_SOURCES = {
  "digits": ("--config=digits", "--config.model.depth=2"),  # In memory, preprocessed by NumPy.
  "memory": ("--config=cifar:runlocal", "--config.input.cache_raw=True"),  # In memory, preprocessed by TensorFlow.
  "tfds": ("--config=cifar:runlocal", "--config.input.shuffle_buffer_size=40"),  # Streamed from disk.
}


def main() -> None:
  parser = argparse.ArgumentParser(prog="torture", description=__doc__.split("\n\n")[0])
  parser.add_argument("--kills", type=int, default=25)
  parser.add_argument("--source", choices=sorted(_SOURCES), default="tfds")
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    result = torture(Path(folder), arguments.source, arguments.kills, arguments.steps, random.Random(arguments.seed))
  print(json.dumps(result, indent=2))
  sys.exit(1 if result["differences"] else 0)


def torture(folder: Path, source: str, kills: int, steps: int, rng: random.Random) -> dict:
  """Runs the job whole, then killed `kills` times, in `folder`; see the module's docstring for the result."""
  env = {"TFDS_DATA_DIR": str(folder / "data")}
  if source != "digits":
    standin.write(folder / "data", "cifar10")
  options = (
    *_SOURCES[source],
    f"--config.total_steps={steps}",
    "--config.ckpt_steps=5",
    "--config.log_training_steps=1",
    "--config.model.dropout=0.1",
    f"--cache_dir={folder / 'cache'}",
  )
  status, output = trainer.run(_TRAINER, *options, f"--workdir={folder / 'whole'}", env=env, timeout=3_600)
  if status:
    sys.exit(output)
  steps_hit, in_write = [], 0
  for number in range(kills):
    # Later kills are given more steps, so that they are spread over the whole run.
    process = trainer.start(_TRAINER, *options, f"--workdir={folder / 'killed'}", env=env)
    step = _wait_for_steps(process, rng.randint(0, 2 * steps // (kills + 1)))
    if number % 3 == 0:
      in_write += _wait_for_write(process, folder / "killed" / "checkpoints")
    time.sleep(rng.random() * 0.05)
    if process.poll() is not None:
      break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps_hit.append(step)
    print(f"killed {number + 1}/{kills} after step {step}", file=sys.stderr, flush=True)
  status, output = trainer.run(_TRAINER, *options, f"--workdir={folder / 'killed'}", env=env, timeout=3_600)
  if status:
    sys.exit(output)
  return {
    "source": source,
    "steps": steps,
    "kills": len(steps_hit),
    "killed_after_steps": steps_hit,
    "killed_inside_a_write": in_write,
    "arrays_compared": len(trainer.final_state(folder / "whole")),
    "metric_lines_compared": len(trainer.repeatable_metrics(folder / "whole")),
    "differences": trainer.differences(folder / "whole", folder / "killed"),
  }


def _wait_for_steps(process: subprocess.Popen, count: int) -> int:
  """Reads the job's output until it has logged `count` steps; the last step seen, 0 where it has not begun."""
  step = 0
  while count > 0 and (line := process.stdout.readline()):
    if match := re.match(r"step ([\d,]+)/", line):
      step, count = int(match[1].replace(",", "")), count - 1
  return step


def _wait_for_write(process: subprocess.Popen, checkpoints: Path) -> bool:
  while process.poll() is None:
    if list(checkpoints.glob("*tmp*")):
      return True
    time.sleep(0.0005)
  return False


if __name__ == "__main__":
  main()
