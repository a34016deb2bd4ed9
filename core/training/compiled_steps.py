"""The compiled forms of a step: each compiled once, the first before training begins, the others while it runs."""

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

  A form is traced and compiled once. The first that is needed is there when this object is; those that the next
  thousand steps need follow in the background, in the order of their need, and one that comes later is compiled when it
  comes. XLA compiles without Python's lock, so the steps go on meanwhile.

  Args:
    lower: `form -> jax.stages.Lowered`; called from other threads too.
    form: `step -> form`, a pure function, the same in all processes.
    start: the step after which training begins.
    total: the last step.
  """

  def __init__(
    self, lower: Callable[[Hashable], jax.stages.Lowered], form: Callable[[int], Hashable], *, start: int, total: int
  ):
    self._lower, self._form = lower, form
    first: Future = Future()
    first.set_result(lower(form(start + 1)).compile())
    self._programs = {form(start + 1): first}
    # Processes that compile one program together must do so in one order; alone, half the cores are left to training.
    workers = 1 if jax.process_count() > 1 else max(1, (os.cpu_count() or 1) // 2)
    self._pool = ThreadPoolExecutor(workers, thread_name_prefix="compile")
    for step in range(start + 2, min(start + _STEPS_AHEAD, total) + 1):
      self._program(form(step))

  def for_step(self, step: int) -> tuple[Callable[..., Any], float]:
    """The program of `step`, and the seconds for which it had to be waited for.

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
