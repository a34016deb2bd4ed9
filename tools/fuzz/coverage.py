"""Which lines of core an input reaches, and which of many inputs reach lines that no smaller one does.

Where an exception comes from counts as well, also out of another package: most readers' damage is found there.
"""

import contextlib
import itertools
import sys
from collections.abc import Hashable, Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any

Lines = set[Hashable]

_ours: dict[CodeType, bool] = {}


@contextlib.contextmanager
def reached() -> Iterator[Lines]:
  """Gives a set that is filled with what this thread runs of core meanwhile: lines, and where exceptions come from."""
  lines: Lines = set()

  def on_call(frame: FrameType, event: str, _: Any) -> Any:
    code = frame.f_code
    if code not in _ours:
      _ours[code] = "/core/" in code.co_filename and "site-packages" not in code.co_filename
    return on_line if _ours[code] else None

  def on_line(frame: FrameType, event: str, argument: Any) -> Any:
    lines.add((frame.f_code.co_filename, frame.f_lineno, *(_source(argument[2]) if event == "exception" else ())))
    return on_line

  before = sys.gettrace()
  sys.settrace(on_call)
  try:
    yield lines
  finally:
    sys.settrace(before)


def _source(trace: TracebackType) -> tuple[str, int]:
  while trace.tb_next is not None:
    trace = trace.tb_next
  return trace.tb_frame.f_code.co_filename, trace.tb_lineno


class Corpus:
  """Inputs that reached something new when they came.

  Attributes:
    kept: the inputs, in the order in which they came.
  """

  def __init__(self) -> None:
    self._reached: Lines = set()
    self._of_each: list[tuple[Any, Lines]] = []

  @property
  def kept(self) -> list[Any]:
    return [drawn for drawn, _ in self._of_each]

  def offer(self, drawn: Any, lines: Lines) -> None:
    """Keeps an input if it reached what none before it did."""
    if not lines <= self._reached:
      self._reached |= lines
      self._of_each.append((drawn, set(lines)))

  def smallest(self, room: int) -> list[Any]:
    """Returns those that reach what no smaller one does, the small ones first, of so many characters together."""
    least = Corpus()
    for drawn, lines in sorted(self._of_each, key=lambda each: len(ascii(each[0]))):
      least.offer(drawn, lines)
    sizes = itertools.accumulate(len(ascii(drawn)) for drawn in least.kept)
    return [drawn for drawn, size in zip(least.kept, sizes) if size <= room]
