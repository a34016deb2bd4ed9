"""Kills a training job again and again, and compares it bit for bit with one that was never stopped.

Kills come at random moments and inside checkpoint writes.

    ./bazelw run //tools:torture -- --kills=25 --source=digits
    ./bazelw run //tools:torture -- --kills=25 --source=memory
    ./bazelw run //tools:torture -- --kills=25 --source=tfds
    ./bazelw run //tools:torture -- --kills=20 --source=digits --processes=4 --steps=200

Of several processes one is killed, or paused until the others have given it up; these must name it and end by
themselves, whereupon all are started again.

Prints one JSON object: the kills, at which steps they hit, how many inside a write, and what differs in the end: final
parameters, optimizer state, or metrics.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from core import command
from core.testing import generated_tfds, trainer

_TRAINER = "projects.vit.train"
_LOST_AFTER = 10  # Seconds.
_SOURCES = {
  "digits": ("--config=digits", "--config.model.depth=2"),  # In memory, preprocessed by NumPy.
  "memory": ("--config=cifar:runlocal", "--config.input.cache_raw=True"),  # In memory, preprocessed by TensorFlow.
  "tfds": ("--config=cifar:runlocal", "--config.input.shuffle_buffer_size=40"),  # Streamed from disk.
}


_COMMAND = command.Command("torture [--kills=N] [--source=WHICH] [options]", about=__doc__)
_COMMAND.whole("kills", "how many", default=25)
_COMMAND.choice("source", tuple(_SOURCES), "of the data", default="tfds")
_COMMAND.whole("steps", "of the run", default=400)
_COMMAND.whole("processes", "of the job", default=1)
_COMMAND.whole("seed", "of the moments", default=0, least=0)


def main(argv: Sequence[str]) -> int:
  """Runs the job and prints what became of it; returns 1 if anything differs."""
  flags, _ = _COMMAND.parse(argv)
  rng = random.Random(flags.seed)
  with tempfile.TemporaryDirectory() as folder:
    result = torture(Path(folder), flags.source, flags.kills, flags.steps, flags.processes, rng)
  print(json.dumps(result, indent=2))
  return 1 if result["differences"] else 0


def torture(folder: Path, source: str, kills: int, steps: int, processes: int, rng: random.Random) -> dict:
  """Runs the job whole, then killed `kills` times, in `folder`; see the module's docstring for the result."""
  env = {"TFDS_DATA_DIR": str(folder / "data")}
  if source != "digits":
    generated_tfds.write(folder / "data", "cifar10")
  options = (
    *_SOURCES[source],
    f"--config.total_steps={steps}",
    "--config.ckpt_steps=5",
    "--config.log_training_steps=1",
    "--config.model.dropout=0.1",
    f"--cache_dir={folder / 'cache'}",
  )

  def start(name: str) -> list[subprocess.Popen]:
    return _start(processes, *options, f"--workdir={folder / name}", env=env)

  began = time.monotonic()
  _finish(start("whole"))
  steps_hit, in_write, pauses, unnamed, seconds = [], 0, 0, [], [0.0]
  for number in range(kills):
    # Later kills are given more steps, so that they are spread over the whole run.
    job = start("killed")
    step = _wait_for_steps(job[0], rng.randint(0, 2 * steps // (kills + 1)))
    if number % 3 == 0:
      in_write += _wait_for_write(job[0], folder / "killed" / "checkpoints")
    # Before the first step, at any moment of its start.
    time.sleep(rng.random() * (0.05 if step or processes == 1 else 10))
    if job[0].poll() is not None:
      break
    victim, pause = rng.randrange(processes), processes > 1 and rng.random() < 0.5
    job[victim].send_signal(signal.SIGSTOP if pause else signal.SIGKILL)
    hit = time.monotonic()
    outputs = [process.communicate(timeout=600)[0] for process in job if process is not job[victim]]
    seconds.append(time.monotonic() - hit)
    job[victim].kill()
    job[victim].communicate()
    pauses += pause
    steps_hit.append(step)
    word = "paused" if pause else "killed"
    unnamed += [f"{word} {victim} after {step}: {_last(x)}" for x in outputs if f"error: process {victim} " not in x]
    print(f"{word} {victim}, {number + 1}/{kills}, after step {step}", file=sys.stderr, flush=True)
  _finish(start("killed"))
  return {
    "source": source,
    "processes": processes,
    "steps": steps,
    "minutes": round((time.monotonic() - began) / 60, 1),
    "kills": len(steps_hit),
    "of_them_pauses": pauses,
    "killed_after_steps": steps_hit,
    "killed_inside_a_write": in_write,
    "seconds_until_the_others_had_ended": round(max(seconds), 1),
    "others_that_ended_without_its_name": unnamed,
    "arrays_compared": len(trainer.final_state(folder / "whole")),
    "metric_lines_compared": len(trainer.repeatable_metrics(folder / "whole")),
    "differences": trainer.differences(folder / "whole", folder / "killed"),
  }


def _start(processes: int, *options: str, env: dict[str, str]) -> list[subprocess.Popen]:
  """Starts the processes of one job; process 0 is the one whose output tells the steps."""
  if processes == 1:
    return [trainer.start(_TRAINER, *options, env=env)]
  together = (
    f"--coordinator=localhost:{trainer.free_port()}",
    f"--processes={processes}",
    f"--lost_after={_LOST_AFTER}",
  )
  return [trainer.start(_TRAINER, *options, *together, f"--process_id={i}", env=env) for i in range(processes)]


def _finish(job: list[subprocess.Popen]) -> None:
  """Waits for the job's good end, and ends the program with what it said where it came to another."""
  outputs = [process.communicate(timeout=3_600)[0] for process in job]
  if any(process.returncode for process in job):
    sys.exit("\n".join(outputs))


def _last(output: str) -> str:
  return (output.strip().splitlines() or ["nothing said"])[-1]


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
  command.run(main)
