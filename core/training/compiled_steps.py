"""The compiled forms of a step, each compiled once: the first while a run is prepared, the others while it trains."""

import os
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

# How far ahead is looked for the forms to come.
_STEPS_AHEAD = 1_000


class CompiledSteps:
  """A step's program for each of its forms (see `core.tasks.task.Task.form`).

  A form is traced and compiled once. XLA compiles without Python's lock, so it does so in the background. The first
  that is needed is traced here and compiles while the state is made and the data are opened. Those that the next
  thousand steps need follow after `wait`, in the order of their need, and one that comes later when it comes.

  Args:
    lower: `form -> jax.stages.Lowered`; called from other threads too.
    form: `step -> form`, a pure function, the same in all processes.
    start: the step after which training begins.
    total: the last step. 0 compiles nothing.
  """

  def __init__(
    self, lower: Callable[[Hashable], jax.stages.Lowered], form: Callable[[int], Hashable], *, start: int, total: int
  ):
    self._lower, self._form = lower, form
    self._start, self._total = start, total
    self._programs: dict[Hashable, Future] = {}
    # Processes that compile one program together must do so in one order; alone, half the cores are left to training.
    together = jax.process_count() > 1
    self._pool = ThreadPoolExecutor(1 if together else max(1, (os.cpu_count() or 1) // 2), thread_name_prefix="compile")
    if total == 0:
      return
    first = form(start + 1)
    self._programs[first] = self._pool.submit(lower(first).compile)
    if together:
      self._programs[first].exception()  # Waits: nothing else may be compiled meanwhile.

  def wait(self) -> None:
    """Waits for the program of the first step, and has those of the next thousand compiled; to be called once.

    Raises:
      UserError: what tracing refused.
    """
    if self._total == 0:
      return
    self._program(self._form(self._start + 1)).result()
    for step in range(self._start + 2, min(self._start + _STEPS_AHEAD, self._total) + 1):
      self._program(self._form(step))

  def for_step(self, step: int) -> tuple[Callable[..., Any], float]:
    """Returns the program of `step`, and the seconds for which it had to be waited for.

    Raises:
      UserError: what tracing refused.
    """
    program = self._program(self._form(step))
    if program.done():
      return program.result(), 0.0
    began = time.perf_counter()
    return program.result(), time.perf_counter() - began

  def close(self) -> None:
    """Leaves uncompiled what has not begun to be; what has is not waited for."""
    self._pool.shutdown(wait=False, cancel_futures=True)

  def _program(self, form: Hashable) -> Future:
    if form not in self._programs:
      self._programs[form] = self._pool.submit(lambda: self._lower(form).compile())
    return self._programs[form]
