"""Downloads and prepares datasets by name, for the `name` of a config's `data`: any of TFDS, and ImageNet-21k.

    ./bazelw run //tools:prepare_data -- cifar10 oxford_iiit_pet imagenet_v2/matched-frequency
    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real --manual_dir=~/archives
    ./bazelw run //tools:prepare_data -- imagenet21k/winter21 --data_dir=/data/tfds --manual_dir=~/archives
    ./bazelw run //tools:prepare_data -- --list=imagenet

Files that a licence keeps from being downloaded, and any download that TFDS has under a name of its own (ReaL's
`real.json`, the archives of ImageNet-v2), are taken from `--manual_dir` if they lie there. A dataset appears whole or
not at all, also after Ctrl-C or a kill; what is prepared already is left as it is.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from core import command
from core.data.preparation import Dataset, check, discard, known_names, prepare
from core.errors import UserError
from core.files import from_here
from core.live import Line

_PLAIN_SECONDS = 30.0  # Between two lines on the same step, where the output is no terminal.


_COMMAND = command.Command(
  "prepare_data NAME ... [options]",
  about=__doc__,
  words="names of datasets: cifar10, imagenet2012, imagenet_v2/matched-frequency, ...",
)
_COMMAND.text("data_dir", "where they go (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)", shown="DIR")
_COMMAND.text("manual_dir", "files fetched by hand (default: downloads/manual in data_dir)", shown="DIR")
_COMMAND.whole("jobs", "datasets prepared at the same time (default: one a processor)")
_COMMAND.text("list", "print the names there are, with WORD in them, and end", shown="WORD", bare="")


def main(argv: Sequence[str]) -> int:
  """Prepares the datasets named on the command line; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  if flags.list is not None:
    print("\n".join(name for name in known_names() if flags.list in name))
    return 0
  if not flags.words:
    raise UserError("name a dataset, or --list=WORD to see what there is; see --help")
  data_dir = from_here(flags.data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
  manual_dir = from_here(flags.manual_dir) if flags.manual_dir else data_dir / "downloads" / "manual"
  datasets = [Dataset(name, data_dir, manual_dir) for name in dict.fromkeys(flags.words)]
  jobs = flags.jobs or min(len(datasets), os.cpu_count() or 1)

  lines, ready = {}, []
  for dataset in datasets:
    try:
      done = check(dataset)
    except UserError as error:
      lines[dataset.name] = (False, str(error))
      print(f"error: {dataset.name}: {error}", file=sys.stderr, flush=True)
      continue
    if done:
      lines[dataset.name] = (True, f"was ready: {done}")
    else:
      ready.append(dataset)
  with contextlib.closing(Screen(sys.stderr)) as screen:
    lines |= prepare_all(ready, max(1, jobs), screen)
  width = max(map(len, lines))
  for dataset in datasets:
    fine, text = lines[dataset.name]
    print(f"{dataset.name:{width}}  {'' if fine else 'FAILED: '}{text}", flush=True)
  return 0 if all(fine for fine, _ in lines.values()) else 2


class Screen:
  """Shows what is being done: in one live line on a terminal, else in a line now and then."""

  def __init__(self, stream: Any):
    self._line = Line(stream)
    self._now: dict[str, str] = {}
    self._shown: dict[str, tuple[str, float]] = {}

  def report(self, name: str, text: str) -> None:
    """Shows what is being done for `name` now."""
    self._now[name] = text
    if self._line.live:
      self._line.draw(self._all())
      return
    step, shown = self._shown.get(name, ("", -_PLAIN_SECONDS))
    if text.partition(":")[0] != step or time.monotonic() - shown >= _PLAIN_SECONDS:
      self._shown[name] = (text.partition(":")[0], time.monotonic())
      self._line.say(f"{name}: {text}")

  def end(self, name: str, text: str) -> None:
    """Shows the last of `name`, which stays on the screen."""
    self._now.pop(name, None)
    self._line.say(f"{name}: {text}")
    if self._now:
      self._line.draw(self._all())

  def close(self) -> None:
    """Takes away what was being done."""
    self._line.close()

  def _all(self) -> str:
    return " | ".join(f"{each}: {what}" for each, what in self._now.items())


# One process a dataset, so that several run at once and one that dies takes no other with it.


def prepare_all(datasets: Sequence[Dataset], jobs: int, screen: Screen) -> dict[str, tuple[bool, str]]:
  """Prepares datasets, `jobs` at a time; for each whether it is ready, and what is there or why not."""
  context = multiprocessing.get_context("spawn")
  waiting, results = collections.deque(datasets), {}
  running: dict[multiprocessing.connection.Connection, tuple[Any, Dataset]] = {}
  with signals.raising():
    try:
      while waiting or running:
        while waiting and len(running) < jobs:
          ours, theirs = context.Pipe(duplex=False)
          process = context.Process(target=_work, args=(theirs, waiting[0]))
          process.start()
          theirs.close()
          running[ours] = (process, waiting.popleft())
        for connection in multiprocessing.connection.wait(list(running)):
          process, dataset = running[connection]
          try:
            kind, text = connection.recv()
          except EOFError:
            process.join()
            kind, text = "failed", f"its process ended with exit status {process.exitcode}"
            discard(dataset)
          if kind == "progress":
            screen.report(dataset.name, text)
            continue
          screen.end(dataset.name, "ready" if kind == "ready" else f"failed: {text}")
          results[dataset.name] = (kind == "ready", text)
          del running[connection]
          process.join()
    finally:
      for process, _ in running.values():
        process.terminate()
      for process, dataset in running.values():
        process.join()
        discard(dataset)  # A second signal may have stopped it from doing so itself.
  return results


def _work(connection: multiprocessing.connection.Connection, dataset: Dataset) -> None:
  """Runs as the process of one dataset: sends ("progress", line)s, then ("ready" or "failed", line)."""
  signal.signal(signal.SIGTERM, _exit_on_signal)

  def send(kind: str, text: str) -> None:
    connection.send((kind, text))

  send("progress", "starts")
  with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
    try:
      send("ready", prepare(dataset, lambda line: send("progress", line)))
    except UserError as error:
      send("failed", str(error))
    except (KeyboardInterrupt, BrokenPipeError):
      sys.exit(130)


def _exit_on_signal(number: int, frame: Any) -> None:
  sys.exit(128 + number)  # As an exception, so that what is half-made is removed.


if __name__ == "__main__":
  command.run(main)
