"""Leaving in good order when the machine is taken away: SIGTERM (or Ctrl-C) ends the run after the step in flight."""

import contextlib
import signal

import jax

from core import signals
from core.cluster import processes

EXIT_CODE = signals.STATUS[signal.SIGTERM]


class Preempted(Exception):
  """The run was asked to stop; its state is saved as of `step`.

  Attributes:
    step: the last.
    status: the exit status of a program that ends so: its signal's, SIGTERM's where another process had that.
  """

  def __init__(self, step: int):
    super().__init__(f"preempted after step {step:,}, start again to resume")
    self.step = step
    self.status = signals.STATUS.get(signals.noted(), EXIT_CODE)


class Preemption:
  """A context in which SIGTERM and the first Ctrl-C only leave a note, read by `requested`.

  With many processes the signal may reach only one. It tells the others, and all stop after the same step.
  """

  def __init__(self):
    self._closing = contextlib.ExitStack()

  def __enter__(self) -> "Preemption":
    self._closing.enter_context(signals.noting())
    return self

  def __exit__(self, *_: object) -> None:
    self._closing.close()

  def requested(self) -> bool:
    """Returns whether to leave off what can be done again, evaluation; only a process that is alone may decide that."""
    return signals.noted() is not None and jax.process_count() == 1

  def agreed(self, step: int) -> bool:
    """Returns whether all processes stop after `step`; each of them must call it once a step."""
    return processes.stops_after(step, asked=signals.noted() is not None)
