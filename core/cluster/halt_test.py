"""The last step of a process that is asked before its first, and of one that waits while it is held."""

import threading

from core.cluster.halt import Halt


def test_a_run_resumed_after_step_100_that_is_asked_before_its_first_stops_after_that():
  halt = Halt()
  assert halt.hold() == 0
  halt.release(1)
  assert halt.stops_after(101)


def test_a_step_waits_while_the_process_is_held_and_goes_on_to_the_last():
  halt, found = Halt(), []
  assert not halt.stops_after(7)
  assert halt.hold() == 7
  training = threading.Thread(target=lambda: found.extend(halt.stops_after(step) for step in (8, 9)), daemon=True)
  training.start()
  training.join(0.2)
  assert training.is_alive()
  assert not found
  halt.release(9)
  training.join(60)
  assert found == [False, True]
