"""Ctrl-C and SIGTERM from a program's first moment to its last: one line, and an exit status that says which it was.

A program listens before it imports what takes seconds:

    from core import signals

    if __name__ == "__main__":
      signals.listen()

    import jax

Python runs its handlers in the main thread, between two instructions of its own: not while XLA compiles. What they
raise may be lost in a callback, of the garbage collector for one. A thread here hears of each signal at once,
therefore, and ends the process where the main thread does not. A second signal ends it there and then.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

# Of a program that a signal ended: as shells have it, and EX_TEMPFAIL: nothing is wrong, start again.
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 75}

_LINES = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}
_PATIENCE = 5.0  # Seconds in which the main thread must have ended the program in good order.
_LAST = 8.0  # Seconds from the end of `main` in which the process ends, whatever its threads wait for.
_SAME = 0.05  # Seconds in which a signal that comes twice is one: GNU's timeout sends it to the process and its group.


class Interrupted(KeyboardInterrupt):
  """A signal asks the program to end.

  Attributes:
    number: of the signal.
  """

  def __init__(self, number: int):
    super().__init__(_LINES[number])
    self.number = number


class _State:
  """What the handler, the listening thread and the program tell each other.

  Attributes:
    listening: whether this program has called `listen`.
    first: the first signal; None before it.
    noting: whether that only leaves a note, because the program looks for it.
    raising: whether it is raised, because somebody catches it.
    raised: whether it was.
    line: what is said instead of `_LINES`.
    status: of the program where it is over.
    said: held by who says the last line, and never let go.
    stderr: where it goes, though an import may have silenced the stream meanwhile.
  """

  def __init__(self):
    self.listening = self.noting = self.raising = self.raised = False
    self.first: int | None = None
    self.line: str | None = None
    self.status = 1
    self.said = threading.Lock()
    self.stderr = 2


_state = _State()


def listen() -> None:
  """Has signals end this program from here on; for the first lines of a program, never for those of a module.

  A signal that is ignored, as under nohup, stays so.
  """
  if _state.listening:
    return
  _state.listening, _state.stderr = True, os.dup(2)
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  for number in _not_ignored(STATUS):
    signal.signal(number, _handle)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  sys.unraisablehook, sys.excepthook = _unraisable, _uncaught
  threading.Thread(target=_hear, args=(reader,), name="signals", daemon=True).start()
  threading.Thread(target=_end_in_time, name="end in time", daemon=True).start()


@contextlib.contextmanager
def raising(line: str | None = None) -> Iterator[None]:
  """Raises `Interrupted` at the first signal while the context lasts.

  Args:
    line: what the program says then; by default which signal it was.
  """
  before = _state.raising, _state.line
  _state.raising, _state.line = True, line or _state.line
  try:
    with _handled(STATUS):
      yield
  finally:
    _state.raising, _state.line = before


@contextlib.contextmanager
def noting(numbers: Iterable[int] = tuple(STATUS)) -> Iterator[None]:
  """Has the first signal only leave a note, read by `noted`, while the context lasts.

  Args:
    numbers: the signals to handle where the program does not listen; others may be a library's.
  """
  before, _state.noting = _state.noting, True
  try:
    with _handled(numbers):
      yield
  finally:
    _state.noting = before


def noted() -> int | None:
  """Returns the signal that asked for an end, None before it."""
  return _state.first


def cause(error: BaseException) -> int | None:
  """Returns the signal that an exception comes from, None where it comes from none.

  Libraries may turn what a handler raised into an error of their own.
  """
  if isinstance(error, KeyboardInterrupt):
    return getattr(error, "number", signal.SIGINT)
  return _state.first if _state.raised else None


def words(number: int) -> str:
  """Returns the line of a program that a signal ended."""
  return _state.line or _LINES[number]


def say_last(number: int) -> None:
  """Says the line of a program that a signal ended, once."""
  if not _state.listening:
    print(words(number), file=sys.stderr, flush=True)
  elif _state.said.acquire(blocking=False):
    clear = "\r\033[K" if os.isatty(_state.stderr) else ""  # A live line may stand there.
    with contextlib.suppress(OSError):
      os.write(_state.stderr, f"{clear}{words(number)}\n".encode())


def end_in_time(status: int) -> None:
  """Notes with which status the program is over, in case something keeps its process from ending."""
  _state.status = status


def _not_ignored(numbers: Iterable[int]) -> list[int]:
  return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _handle(number: int, frame: FrameType | None) -> None:
  """Runs in the main thread, when that comes to it."""
  if _state.first is not None:
    return
  _state.first = number
  if _state.raising and not _state.noting:
    _state.raised = True
    raise Interrupted(number)


@contextlib.contextmanager
def _handled(numbers: Iterable[int]) -> Iterator[None]:
  """Handles signals in a program that does not listen; a second one does what it always did."""
  if _state.listening or threading.current_thread() is not threading.main_thread():
    yield
    return
  before: dict[int, Any] = {}

  def restore() -> None:
    while before:
      signal.signal(*before.popitem())

  def handle(number: int, frame: FrameType | None) -> None:
    restore()
    if _state.first is None:
      _handle(number, frame)
    else:
      signal.raise_signal(number)

  before.update({number: signal.signal(number, handle) for number in _not_ignored(numbers)})
  outermost = _state.first is None
  try:
    yield
  finally:
    restore()
    if outermost:
      _state.first, _state.raised = None, False


def _hear(reader: int) -> None:
  """Reads the signals as the kernel delivers them, whatever the main thread does."""
  seen: dict[int, float] = {}
  while True:
    for number in os.read(reader, 1):
      if number not in STATUS:
        continue
      again, now = bool(seen), time.monotonic()
      if number in seen and now - seen[number] < _SAME:
        continue
      seen[number] = now
      if again or not (_state.noting or _state.raising):
        _end(number)
      if not _state.noting:
        threading.Thread(target=_end, args=(number, _PATIENCE), daemon=True).start()


def _end(number: int, after: float = 0.0) -> NoReturn:
  """Ends the process with the signal's line and status; what was being written is left out, for it has no name yet."""
  time.sleep(after)
  say_last(number)
  flushing = threading.Thread(target=_flush, daemon=True)
  flushing.start()
  flushing.join(0.5)  # The main thread may hold the stream.
  os._exit(STATUS[number])


def _flush() -> None:
  with contextlib.suppress(Exception):
    sys.stdout.flush()


def _end_in_time() -> None:
  """Ends the process some seconds after its main thread, though other threads may be waiting for ever."""
  threading.main_thread().join()
  time.sleep(_LAST if _state.first is None else 2.0)
  os._exit(_state.status)


def _unraisable(unraisable: Any) -> None:
  """Ends the process where what the handler raised was lost in a callback; tells of all else as Python does."""
  if isinstance(unraisable.exc_value, Interrupted):
    _end(unraisable.exc_value.number)
  if isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed":
    return  # A part of a checkpoint that failed, of which the program tells in a line.
  sys.__unraisablehook__(unraisable)


def _uncaught(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
  if isinstance(error, KeyboardInterrupt):
    _end(cause(error))
  sys.__excepthook__(kind, error, traceback)
