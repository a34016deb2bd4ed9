"""Seconds from starting the trainer to its first step done, without and with a warm compilation cache, in one run.

./bazelw run //tools/bench:start
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from core.testing import trainer


def main() -> None:
  parser = argparse.ArgumentParser(prog="start", description=__doc__.split("\n\n")[0])
  parser.add_argument("--rounds", type=int, default=3)
  arguments = parser.parse_args()
  seconds = {"cold": [], "warm": []}
  with tempfile.TemporaryDirectory() as folder:
    for number in range(arguments.rounds):
      for kind in seconds:
        seconds[kind].append(first_step(Path(folder) / f"{kind}{number}", Path(folder) / f"cache{number}"))
  print(json.dumps({f"{kind}_cache_s": round(statistics.median(each), 2) for kind, each in seconds.items()}, indent=2))


def first_step(workdir: Path, cache: Path) -> float:
  """Seconds until a fresh default run of the vit project says that step 1 is done."""
  began = time.perf_counter()
  process = trainer.start("projects.vit.train", f"--workdir={workdir}", f"--cache_dir={cache}")
  for line in process.stdout:
    if line.startswith("step 1/"):
      break
  seconds = time.perf_counter() - began
  process.kill()
  process.communicate()
  return seconds


if __name__ == "__main__":
  main()
