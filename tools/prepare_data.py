"""Downloads and prepares datasets by name, for the `name` of a config's `data`: any of TFDS, and ImageNet-21k.

    ./bazelw run //tools:prepare_data -- cifar10 oxford_iiit_pet imagenet_v2/matched-frequency
    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real --manual_dir=~/archives
    ./bazelw run //tools:prepare_data -- imagenet21k/winter21 --data_dir=/data/tfds --manual_dir=~/archives
    ./bazelw run //tools:prepare_data -- --list=imagenet

Files that a licence keeps from being downloaded, and any download that TFDS has under a name of its own (ReaL's
`real.json`, the archives of ImageNet-v2), are taken from `--manual_dir` if they lie there. A dataset appears whole or
not at all, also after Ctrl-C or a kill; what is prepared already is left as it is.
"""

import argparse
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

from core import terminal
from core.data.preparation import Dataset, check, discard, known_names, prepare
from core.errors import UserError
from core.files import from_here

_PLAIN_SECONDS = 30.0  # Between two lines on the same step, where the output is no terminal.


def main(argv: Sequence[str] | None = None) -> int:
  """Prepares the datasets named on the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="prepare_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("names", nargs="*", help="cifar10, imagenet2012, imagenet_v2/matched-frequency, ...")
  parser.add_argument("--data_dir", default=os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
  parser.add_argument("--manual_dir", help="files fetched by hand (default: downloads/manual in data_dir)")
  parser.add_argument("--jobs", type=int, help="datasets prepared at the same time (default: one a processor)")
  parser.add_argument(
    "--list", nargs="?", const="", metavar="WORD", help="print the names there are, with WORD in them"
  )
  flags = parser.parse_args(argv)
  if flags.list is not None:
    print("\n".join(name for name in known_names() if flags.list in name))
    return 0
  if not flags.names:
    parser.error("name a dataset, or --list=WORD to see what there is")
  data_dir = from_here(flags.data_dir)
  manual_dir = from_here(flags.manual_dir) if flags.manual_dir else data_dir / "downloads" / "manual"
  datasets = [Dataset(name, data_dir, manual_dir) for name in dict.fromkeys(flags.names)]
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
  lines |= prepare_all(ready, max(1, jobs), Screen(sys.stderr))
  width = max(map(len, lines))
  for dataset in datasets:
    fine, text = lines[dataset.name]
    print(f"{dataset.name:{width}}  {'' if fine else 'FAILED: '}{text}", flush=True)
  return 0 if all(fine for fine, _ in lines.values()) else 2


class Screen:
  """Shows what is being done: one line written over and over in a terminal, else a line now and then."""

  def __init__(self, stream: Any):
    self._stream, self._live = stream, stream.isatty()
    self._now: dict[str, str] = {}
    self._shown: dict[str, tuple[str, float]] = {}

  def report(self, name: str, text: str) -> None:
    """`text` is what is being done for `name` now."""
    self._now[name] = text
    if self._live:
      line = " | ".join(f"{each}: {what}" for each, what in self._now.items())
      print(terminal.redrawn(line), end="", file=self._stream, flush=True)
      return
    step, shown = self._shown.get(name, ("", -_PLAIN_SECONDS))
    if text.partition(":")[0] != step or time.monotonic() - shown >= _PLAIN_SECONDS:
      self._shown[name] = (text.partition(":")[0], time.monotonic())
      print(f"{name}: {text}", file=self._stream, flush=True)

  def end(self, name: str, text: str) -> None:
    """Nothing more is being done for `name`; `text` stays on the screen."""
    self._now.pop(name, None)
    print(f"{terminal.CLEAR if self._live else ''}{name}: {text}", file=self._stream, flush=True)


# One process a dataset, so that several run at once and one that dies takes no other with it.


def prepare_all(datasets: Sequence[Dataset], jobs: int, screen: Screen) -> dict[str, tuple[bool, str]]:
  """Prepares datasets, `jobs` at a time; for each whether it is ready, and what is there or why not."""
  context = multiprocessing.get_context("spawn")
  waiting, results = collections.deque(datasets), {}
  running: dict[multiprocessing.connection.Connection, tuple[Any, Dataset]] = {}
  before = signal.signal(signal.SIGTERM, _exit_on_signal)
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
    signal.signal(signal.SIGTERM, before)
  return results


def _work(connection: multiprocessing.connection.Connection, dataset: Dataset) -> None:
  """The process of one dataset: sends ("progress", line)s, then ("ready" or "failed", line)."""
  signal.signal(signal.SIGTERM, _exit_on_signal)
  send = lambda kind, text: connection.send((kind, text))
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
  try:
    sys.exit(main())
  except KeyboardInterrupt:
    sys.exit(130)
