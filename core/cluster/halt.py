"""The step after which all processes of a job stop, agreed on while they train."""

import threading


class Halt:
  """One process's side of the agreement: it passes steps, is held for a moment, and is told which step is the last.

  A thread beside the training answers for it. A process held before a step may be one that the others' collectives
  wait for, so nobody waits for it to come further: the last step is the one after the furthest that any has passed.

  JAX's own agreement (`multihost_utils.reached_preemption_sync_point`) keeps the interpreter's lock while it waits for
  messages, and those of a process that is not the first come through our relay, which needs that lock.
  """

  def __init__(self):
    self._changed = threading.Condition()
    self._passed, self._held = 0, False
    self._last: int | None = None

  def hold(self) -> int:
    """Lets no further step pass until `release`, and returns the last that has passed; 0 before the first."""
    with self._changed:
      self._held = True
      return self._passed

  def release(self, last: int) -> None:
    """Lets steps pass up to `last`, or one more where a resumed run begins beyond it."""
    with self._changed:
      self._last = last
      self._changed.notify_all()

  def stops_after(self, step: int) -> bool:
    """Passes `step`, and returns whether it is the last."""
    with self._changed:
      self._changed.wait_for(lambda: not self._held or self._last is not None)
      self._passed = step
      return self._last is not None and step >= self._last
