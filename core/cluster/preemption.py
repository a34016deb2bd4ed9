"""Leaving in good order when the machine is taken away: SIGTERM (or Ctrl-C) ends the run after the step in flight."""

import contextlib
import os
import signal

import jax
from jax.experimental import multihost_utils

from core import signals

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

  With many processes the signal may reach only one. JAX's coordination service then tells the others, and all stop
  after the same step. It takes SIGTERM for itself, so Ctrl-C is handed on as one.
  """

  def __init__(self):
    self._closing = contextlib.ExitStack()
    self._told = False

  def __enter__(self) -> "Preemption":
    self._closing.enter_context(signals.noting([signal.SIGINT] if jax.process_count() > 1 else signals.STATUS))
    return self

  def __exit__(self, *_: object) -> None:
    self._closing.close()

  def requested(self) -> bool:
    """Returns whether to leave off what can be done again, evaluation; only a process that is alone may decide that."""
    return signals.noted() is not None and jax.process_count() == 1

  def agreed(self, step: int) -> bool:
    """Returns whether all processes stop after `step`; each of them must call it once a step."""
    if jax.process_count() == 1:
      return signals.noted() is not None
    if signals.noted() is not None and not self._told:
      self._told = True
      os.kill(os.getpid(), signal.SIGTERM)
    return multihost_utils.reached_preemption_sync_point(step)
