"""Leaving in good order when the machine is taken away: SIGTERM (or Ctrl-C) ends the run after the step in flight."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL: nothing is wrong, start again.


class Preempted(Exception):
  """The run was asked to stop; its state is saved as of `step`."""

  def __init__(self, step: int):
    super().__init__(f"preempted after step {step:,}, start again to resume")
    self.step = step


class Preemption:
  """A context in which SIGTERM and the first Ctrl-C only leave a note, read by `requested`.

  With many processes the signal may reach only one. JAX's coordination service then tells the others, and all stop
  after the same step.
  """

  def __init__(self):
    self._noted = False
    self._previous: dict[int, object] = {}

  def __enter__(self) -> "Preemption":
    signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    self._previous = {number: signal.signal(number, self._note) for number in signals}
    return self

  def __exit__(self, *_: object) -> None:
    self._restore()

  def requested(self) -> bool:
    """Returns whether to leave off what can be done again, evaluation; only a process that is alone may decide that."""
    return self._noted and jax.process_count() == 1

  def agreed(self, step: int) -> bool:
    """Returns whether all processes stop after `step`; each of them must call it once a step."""
    if jax.process_count() == 1:
      return self._noted
    return multihost_utils.reached_preemption_sync_point(step)

  def _note(self, number: int, frame: FrameType | None) -> None:
    self._noted = True
    self._restore()  # A second signal does what it always did.

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous = {}
