"""A profiler trace of some steps of a run, for TensorBoard or Perfetto: `profile_steps = (100, 110)`."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from core import files


class Trace:
  """A context, and a part of a run, that traces steps `first` to `last` into a folder; without steps it does nothing.

  A trace that cannot be taken or written is a warning: the run does not depend on it.

  Args:
    steps: (first, last), both traced.
    folder: where the trace is written, on disk or in a bucket.
    warn: is called with one line where that fails.
  """

  def __init__(
    self, steps: Sequence[int] | None, folder: str | os.PathLike, *, warn: Callable[[str], None] | None = None
  ):
    self._first, self._last = steps or (None, None)
    self._folder = folder
    self._warn = warn or _say
    self._local: str | None = None  # Where JAX writes meanwhile: a profiler that fails to write never ends.

  def after(self, now: Any) -> None:
    """Begins after the step before the first; ends after the last, whose output is waited for."""
    if self._local is not None and now.step >= self._last:
      jax.block_until_ready(now.state)
      self._stop()
    if self._first is not None and now.step == self._first - 1:
      self._start()

  def __enter__(self) -> "Trace":
    return self

  def __exit__(self, *_: object) -> None:
    if self._local is not None:
      self._stop()

  def _start(self) -> None:
    try:
      local = tempfile.mkdtemp(prefix="trace-")
      jax.profiler.start_trace(local)
    except Exception as error:  # Another profiler runs, the folder cannot be made, ...
      self._warn(f"warning: no profile is taken ({files.reason(error)})")
      return
    self._local = local

  def _stop(self) -> None:
    local, self._local = self._local, None
    try:
      jax.profiler.stop_trace()
      _move(Path(local), epath.Path(files.from_here(self._folder)))
    except Exception as error:
      self._warn(f"warning: the profile could not be written to {os.fspath(self._folder)} ({files.reason(error)})")
    finally:
      shutil.rmtree(local, ignore_errors=True)


def _move(local: Path, folder: epath.Path) -> None:
  for path in files.below(local):
    place = folder / path.relative_to(local)
    files.make_folder(place.parent)
    with open(path, "rb") as source, files.replacing(place) as target:
      shutil.copyfileobj(source, target)


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
