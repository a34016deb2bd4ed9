"""A profiler trace of some steps of a run, for TensorBoard or Perfetto: `profile_steps = (100, 110)`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax


class Trace:
  """A context that traces steps `first` to `last` into a folder; without steps it does nothing.

  Args:
    steps: (first, last), both traced.
    folder: where the trace is written.
  """

  def __init__(self, steps: Sequence[int] | None, folder: Path):
    self._first, self._last = steps or (None, None)
    self._folder = folder
    self._running = False

  def before(self, step: int) -> None:
    """Call before each step."""
    if step == self._first:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, state: Any) -> None:
    """Call after each step with its output, which is waited for at the last traced step."""
    if self._running and step == self._last:
      jax.block_until_ready(state)
      self._stop()

  def __enter__(self) -> "Trace":
    return self

  def __exit__(self, *_: object) -> None:
    if self._running:
      self._stop()

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._running = False
