"""Seconds from starting the trainer to its first step done, without and with a warm compilation cache, in one run.

    ./bazelw run //tools/bench:start
    ./bazelw run //tools/bench:start -- --against=OTHER_CHECKOUT --rounds=10

With another checkout, both start in turns with the same packages, and the medians of this one's share of the other's
time are told: `ratio` of the wall clock, `cpu_ratio` of the processor time of all threads.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from core import command, files
from core.testing import trainer

_COMMAND = command.Command("start [options]", about=__doc__)
_COMMAND.whole("rounds", "how often each is measured", default=3)
_COMMAND.text("against", "another checkout of this repository, to be measured in turns with this one", shown="FOLDER")


def main(argv: Sequence[str]) -> int:
  """Prints the seconds; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  checkouts = {"here": None} | ({"there": Path(files.from_here(flags.against))} if flags.against else {})
  measured = {(kind, name): [] for kind in ("cold", "warm") for name in checkouts}
  with tempfile.TemporaryDirectory() as folder:
    for number in range(flags.rounds):
      # Each goes first as often as the other.
      for name in (sorted if number % 2 else reversed)(list(checkouts)):
        for kind in ("cold", "warm"):
          run, cache = Path(folder) / f"{name}-{kind}{number}", Path(folder) / f"{name}-cache{number}"
          measured[kind, name].append(first_step(run, cache, checkouts[name]))
  print(json.dumps({f"{kind}_cache": _summary(kind, measured) for kind in ("cold", "warm")}, indent=2))
  return 0


def _summary(kind: str, measured: dict[tuple[str, str], list[tuple[float, float]]]) -> dict[str, float]:
  here = measured[kind, "here"]
  found = {}
  for i, name in enumerate(("", "cpu_")):
    found[f"{name}s"] = statistics.median(each[i] for each in here)
    if there := measured.get((kind, "there")):
      found[f"{name}s_there"] = statistics.median(each[i] for each in there)
      found[f"{name}ratio"] = statistics.median(a[i] / b[i] for a, b in zip(here, there, strict=True))
  return {name: round(value, 3) for name, value in found.items()}


def first_step(workdir: Path, cache: Path, checkout: Path | None = None) -> tuple[float, float]:
  """Returns the seconds, by the clock and of processors, until a default run of vit says that step 1 is done."""
  began, used = time.perf_counter(), _used()
  process = trainer.start("projects.vit.train", f"--workdir={workdir}", f"--cache_dir={cache}", folder=checkout)
  for line in process.stdout:
    if line.startswith("step 1/"):
      break
  else:
    raise subprocess.SubprocessError(f"{checkout or 'the trainer'} ended without a step")
  seconds = time.perf_counter() - began
  process.kill()
  process.communicate()
  return seconds, _used() - used


def _used() -> float:
  """Returns the processor time of this process's ended children."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


if __name__ == "__main__":
  command.run(main)
