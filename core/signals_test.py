"""Ctrl-C and SIGTERM end a program with one line and their status, whatever it is doing."""

import os
import signal
import subprocess
import sys

import pytest

from core import command, signals

BOTH = pytest.mark.parametrize(
  "number, status, line", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "stopped by SIGTERM")]
)
START = """
import os, signal, sys, threading, time
from core import signals
signals.listen()
from core import command
send = lambda: os.kill(os.getpid(), NUMBER)
"""


def ended(code, number):
  """Runs a program that listens; its status and what it said, with the seconds within which it must end."""
  code = START.replace("NUMBER", str(int(number))) + code
  env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
  done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60, text=True)
  return done.returncode, done.stdout, done.stderr


IMPORTING = """
class Finder:
  def find_spec(self, name, *_):
    if name == "heavy":
      send()
      time.sleep(30)
sys.meta_path.insert(0, Finder())
import heavy
"""
RUNNING = """
def main(argv):
  try:
    print("begun")
    send()
    time.sleep(30)
  finally:
    print("tidied")
command.run(main)
"""
# What XLA does at each collection: what is raised in a callback is printed and forgotten.
COLLECTING = """
import gc
def main(argv):
  gc.callbacks.append(lambda *_: send())
  gc.collect()
  gc.callbacks.clear()
  time.sleep(30)
  print("went on")
command.run(main)
"""
TURNED_INTO_AN_ERROR = """
def main(argv):
  try:
    send()
    time.sleep(30)
  except KeyboardInterrupt:
    raise RuntimeError("an internal error of a library") from None
command.run(main)
"""
# A thread that is no daemon and never ends, as one that compiles for an hour.
WITH_A_THREAD = """
def main(argv):
  threading.Thread(target=time.sleep, args=(60,)).start()
  send()
  time.sleep(30)
command.run(main)
"""
OVER = """
import atexit
atexit.register(lambda: (send(), time.sleep(30)))
command.run(lambda argv: 0)
"""


@BOTH
@pytest.mark.parametrize(
  "code, printed",
  [
    (IMPORTING, ""),
    (RUNNING, "begun\ntidied\n"),
    (COLLECTING, ""),
    (TURNED_INTO_AN_ERROR, ""),
    (WITH_A_THREAD, ""),
    (OVER, ""),
  ],
  ids=["importing", "running", "collecting", "turned into an error", "with a thread", "over"],
)
def test_a_signal_ends_a_program_with_one_line_and_its_status(code, printed, number, status, line):
  assert ended(code, number) == (status, printed, f"{line}\n")


@BOTH
def test_a_main_thread_that_does_not_end_is_ended(number, status, line):
  stuck = """
signals._PATIENCE = 0.2
def main(argv):
  try:
    send()
    time.sleep(30)
  finally:
    time.sleep(30)
command.run(main, interrupted="left; the rest goes on")
"""
  assert ended(stuck, number) == (status, "", "left; the rest goes on\n")


@BOTH
@pytest.mark.parametrize("context", ["noting", "raising"])
def test_a_second_signal_ends_it_at_once(context, number, status, line):
  twice = f"""
def main(argv):
  with signals.{context}():
    try:
      send()
      time.sleep(0.2)
      print(signals.noted(), flush=True)
    finally:
      time.sleep(0.2)
      send()
      time.sleep(30)
      print("went on")
command.run(main)
"""
  printed = f"{int(number)}\n" if context == "noting" else ""
  assert ended(twice, number) == (status, printed, f"{line}\n")


def test_one_that_comes_twice_at_the_same_moment_is_one():
  twice = """
def main(argv):
  with signals.noting():
    send()
    send()
    time.sleep(0.5)
    return 7
command.run(main)
"""
  assert ended(twice, signal.SIGTERM) == (7, "", "")


def test_what_is_ignored_stays_ignored():
  ignoring = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
signals._state.listening = False
signals.listen()
def main(argv):
  send()
  time.sleep(0.2)
  return 7
command.run(main)
"""
  assert ended(ignoring, signal.SIGINT) == (7, "", "")


@pytest.mark.parametrize("status", [0, 1, 5])
def test_a_process_ends_though_its_threads_wait_for_ever(status):
  waiting = f"""
signals._LAST = 0.2
def main(argv):
  threading.Thread(target=threading.Event().wait).start()
  print("done")
  return {status}
command.run(main)
"""
  assert ended(waiting, signal.SIGINT) == (status, "done\n", "")


def test_the_bounds_leave_ten_seconds_at_most():
  assert signals._LAST < 10
  assert signals._PATIENCE < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_program_that_does_not_listen_handlers_are_lent(number, capfd):
  before = {each: signal.getsignal(each) for each in signals.STATUS}
  with signals.noting():
    os.kill(os.getpid(), number)
    assert signals.noted() == number
    assert {each: signal.getsignal(each) for each in signals.STATUS} == before  # A second does what it always did.
  assert signals.noted() is None

  def main(argv):
    os.kill(os.getpid(), number)
    raise AssertionError("not reached")

  with pytest.raises(SystemExit) as end:
    command.run(main, [])
  assert end.value.code == signals.STATUS[number]
  assert capfd.readouterr().err == f"{signals.words(number)}\n"
  assert {each: signal.getsignal(each) for each in signals.STATUS} == before
