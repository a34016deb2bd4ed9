"""Has every write of a run fail in every way, and stops it at every stage; compares what comes of it bit for bit.

After each a start without a fault ends the run, which must then be as one that never had any.

    ./bazelw run //tools:faults

A run of seconds is started a few hundred times. Prints one JSON object: the writes that a run makes, how many starts
had a fault, how they ended, and what is wrong: a traceback, an exit status that there is not, or a difference.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import collections
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from core import command
from core.testing import faults, trainer
from core.testing.faults import Life

_TRAINER = "projects.vit.train"
_STATUSES = {0, 1, 2, *signals.STATUS.values()}

_COMMAND = command.Command("faults [--only=WHICH]", about=__doc__)
_COMMAND.choice("only", ("writes", "signals"), "of the two; both by default")


def main(argv: Sequence[str]) -> int:
  """Runs all and prints what became of it; returns 1 if anything is wrong."""
  flags, _ = _COMMAND.parse(argv)
  with tempfile.TemporaryDirectory() as folder:
    result = try_all(Path(folder), flags.only)
  print(json.dumps(result, indent=2))
  return 1 if result["wrong"] else 0


def try_all(folder: Path, only: str | None) -> dict:
  """Runs all in `folder`; see the module's docstring for the result."""
  options = [*faults.TINY, f"--cache_dir={folder / 'cache'}"]
  whole, seen = folder / "whole", folder / "seen.json"
  faults.lives(_TRAINER, options, [Life(str(whole), seen=str(seen))])
  writes = json.loads(seen.read_text())
  planned = (faulty_writes(writes) if only != "signals" else []) + (stops() if only != "writes" else [])
  wrong, statuses = [], collections.Counter()
  for number, (name, what) in enumerate(planned):
    workdir = folder / str(number)
    (status, said), (last, again) = faults.lives(_TRAINER, options, [Life(str(workdir), **what), Life(str(workdir))])
    statuses[status] += 1
    found = differences(whole, workdir) if last == 0 else [f"the second start ended with {last}: {again}"]
    wanted = {signals.STATUS[what["signal"]]} if "signal" in what else _STATUSES
    found += ["a traceback"] * ("Traceback" in said + again) + [f"status {status}"] * (status not in wanted)
    wrong += [{"fault": name, "found": found, "said": said}] if found else []
    print(f"{number + 1}/{len(planned)} {name}: {'WRONG' if found else status}", file=sys.stderr, flush=True)
  return {"writes": writes, "faults": len(planned), "statuses": dict(statuses), "wrong": wrong}


def faulty_writes(writes: Sequence[tuple[str, str]]) -> list[tuple[str, dict]]:
  """Returns each write with each error, as names and what `Life` takes."""
  kinds = dict.fromkeys((event, faults.as_regex(path)) for event, path in writes)  # At any step: the first has it.
  planned = [(event, path, error) for event, path in kinds for error in faults.ERRORS]
  planned += [("room", path, 0) for event, path in kinds if event == "os.mkdir" and path.endswith("tmp")]
  return [
    (f"{event} {path} {os.strerror(error) if error else ''}", {"fault": (event, path, error)})
    for event, path, error in planned
  ]


def stops() -> list[tuple[str, dict]]:
  """Returns each stage with each signal, once and twice, as names and what `Life` takes."""
  return [
    (f"{stage}, signal {number}{' twice' * twice}", {"stage": stage, "signal": int(number), "twice": twice})
    for stage in faults.STAGES
    for number in signals.STATUS
    for twice in (False, True)
  ]


def differences(whole: Path, workdir: Path) -> list[str]:
  """Returns what differs between two finished runs, and what one has left lying about."""
  there, expected = ({path.name for path in each.iterdir()} for each in (workdir, whole))
  return trainer.differences(whole, workdir) + sorted(f"{name} in the workdir" for name in there ^ expected)


if __name__ == "__main__":
  command.run(main)
