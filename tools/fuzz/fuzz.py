"""Hands readers inputs that are nearly right, and tells which of them they neither read nor refuse in one line.

    ./bazelw run //tools/fuzz -- --seconds=60 --targets=npz,torch --output=/tmp/found

Each target runs in a process of its own for so many seconds. Inputs that reach new lines of core are changed in turn.
What ends in a traceback is made as small as it gets. What takes longer than half a minute, or ends the process, is kept
as it was. Every fault is a file in the output, with a line on stdout. The status is 1 if there is any.

With --witness, the small inputs that reach lines which no smaller one does are added to a folder: tools/fuzz/witness,
whose inputs a test hands in again.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pickle
import resource
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis

from core import command, files, text_lines
from core.errors import UserError, nearest
from tools.fuzz import coverage, targets

_LONGEST = 300  # Characters of a line that refuses.
_MEMORY = 8 << 30  # Bytes that a target may take.
_HANGS = 30.0  # Seconds.
_SLOW_START = 120.0  # Seconds that imports may take.
_EXAMPLES = 300  # Between two looks at the clock.
_WITNESSES = 10_000  # Characters of a target's witnesses.

_COMMAND = command.Command("fuzz [--seconds=N] [--targets=A,B] [--witness=DIR] --output=DIR", about=__doc__)
_COMMAND.whole("seconds", "that each target runs", default=60)
_COMMAND.whole("seed", "of what is drawn", default=0, least=0)
_COMMAND.several("targets", "which readers; all by default: " + ", ".join(targets.TARGETS), default=())
_COMMAND.text("witness", "a folder of inputs to begin with, and to add to", shown="DIR")
_COMMAND.text("output", "where the inputs of faults go", shown="DIR", required=True)


def main(argv: Sequence[str]) -> int:
  """Runs the targets one after the other and prints a line a fault; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  for name in flags.targets:
    if name not in targets.TARGETS:
      raise UserError(f"--targets: there is no {name!r}{nearest(name, targets.TARGETS)}")
  output = Path(files.from_here(flags.output))
  output.mkdir(parents=True, exist_ok=True)
  witness = Path(files.from_here(flags.witness)) if flags.witness else None
  found = []
  for name in flags.targets or targets.TARGETS:
    command.say(f"{name}: {flags.seconds} s")
    found += in_process(name, flags.seconds, flags.seed, output, witness)
  print(*found, sep="\n", end="\n" if found else "")
  return 1 if found else 0


def in_process(name: str, seconds: float, seed: int, output: Path, witness: Path | None = None) -> list[str]:
  """Runs one target in a process of its own, which it may end or keep for ever; returns a line a fault."""
  with tempfile.TemporaryDirectory() as folder:
    latest, report = Path(folder) / "latest.pickle", Path(folder) / "report.jsonl"
    report.touch()
    args = (name, seconds, seed, output, witness, folder)
    process = multiprocessing.get_context("spawn").Process(target=_run, args=args)
    process.start()
    began = time.monotonic()
    while process.is_alive():
      process.join(0.5)
      age = time.time() - latest.stat().st_mtime if latest.exists() else 0.0
      if age > _HANGS or (not latest.exists() and time.monotonic() - began > _SLOW_START):
        process.kill()
        process.join()
    lines = [json.loads(line) for line in text_lines.read(report, name)]
    if process.exitcode:
      kept = output / f"{name}-{'hangs' if process.exitcode == -9 else 'ends'}.pickle"
      kept.write_bytes(latest.read_bytes() if latest.exists() else b"")
      lines.append(f"{name}: the process ended with {process.exitcode}: {kept}")
  return lines


def _run(name: str, seconds: float, seed: int, output: Path, witness: Path | None, folder: str) -> None:
  place = Path(folder) / "files"
  place.mkdir()
  os.chdir(place)
  warnings.simplefilter("ignore")
  command.quiet()
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
  report, latest = Path(folder) / "report.jsonl", Path(folder) / "latest.pickle"

  def before(drawn: Any) -> None:
    latest.write_bytes(pickle.dumps(drawn))

  def found(line: str) -> None:
    with report.open("a") as file:
      file.write(f"{json.dumps(line)}\n")

  target, file = targets.TARGETS[name](place), witness and witness / f"{name}.txt"
  target = dataclasses.replace(target, seeds=(*target.seeds, *(targets.witnesses(file) if file else ())))
  corpus = explore(name, target, seconds, seed, output, before=before, found=found)
  if file:
    targets.write_witnesses(file, corpus.smallest(_WITNESSES))


def explore(
  name: str,
  target: targets.Target,
  seconds: float,
  seed: int,
  output: Path,
  *,
  before: Callable[[Any], None] = lambda drawn: None,
  found: Callable[[str], None] = print,
) -> coverage.Corpus:
  """Hands a target inputs until the time is over, each fault once, by the line of the source that raised it.

  Returns what reached new lines of core, faults left out.

  Args:
    name: of the target.
    target: it.
    seconds: how long.
    seed: of what is drawn.
    output: where inputs of faults are kept.
    before: called with each input before it is read.
    found: called with a line a fault.
  """
  judge = _Judge(target, before, time.monotonic() + seconds)
  for seed_input in target.seeds:
    with contextlib.suppress(_Found):
      judge(seed_input)
  for turn in range(1_000_000):
    with contextlib.suppress(_Found, hypothesis.errors.Flaky):  # What fails once and not again is a fault as well.
      _drawn(target, judge, seed + turn)()
    for place, (drawn, words) in judge.found.items():
      kept = output / f"{name}-{len(judge.known)}.pickle"
      kept.write_bytes(pickle.dumps(drawn))
      found(f"{name}: {place}: {words}: {kept}")
      judge.known.add(place)
    judge.found.clear()
    if judge.is_over():
      command.say(f"{name}: {judge.read:,} inputs, {len(judge.known)} faults, {len(judge.corpus.kept)} kept")
      break
  return judge.corpus


class _Found(Exception):
  """A fault that is not known yet."""


class _Judge:
  """Hands inputs to a target and keeps those that it fails, of each fault the latest, which is the smallest."""

  def __init__(self, target: targets.Target, before: Callable[[Any], None], ends: float):
    self._target, self._before, self._ends = target, before, ends
    self.known: set[str] = set()
    self.found: dict[str, tuple[Any, str]] = {}
    self.corpus = coverage.Corpus()
    self.read = 0

  def is_over(self, grace: float = 0.0) -> bool:
    return time.monotonic() > self._ends + grace

  def __call__(self, drawn: Any) -> None:
    self.read += 1
    self._before(drawn)
    with coverage.reached() as lines:
      fault = fault_of(self._target.call, drawn)
    if fault is None:
      self.corpus.offer(drawn, lines)
    if fault is None or fault[0] in self.known or self.is_over(_HANGS):
      return
    self.found[fault[0]] = (drawn, fault[1])
    raise _Found(fault[0])


def _drawn(target: targets.Target, judge: _Judge, seed: int) -> Callable[[], None]:
  """Returns a test that hands inputs to a judge, also changes of those kept so far, and makes small what raises."""
  kept = judge.corpus.kept
  drawn = target.drawn | target.changed(kept) if target.changed and kept else target.drawn

  def test(drawn: Any) -> None:
    judge(drawn)

  settings = hypothesis.settings(
    max_examples=_EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
  )
  return settings(hypothesis.seed(seed)(hypothesis.given(drawn)(test)))


def fault_of(call: Callable[[Any], Any], drawn: Any) -> tuple[str, str] | None:
  """Returns where and how a reader fails an input; None where it reads it or refuses it in one line."""
  try:
    call(drawn)
  except UserError as error:
    line = str(error)
    if "MemoryError" in line:
      return "an input that takes all memory", line
    if len(line) > _LONGEST or any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in line):
      return "a line that is none", line[:_LONGEST]
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/core/" in frame.filename and "site-packages" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}: {type(error).__name__}", str(error)[:_LONGEST]
  return None


if __name__ == "__main__":
  command.run(main)
