"""Where lines of text break: greedily, as much on each as it holds."""

import bisect
import dataclasses

import numpy as np
from jaxtyping import Bool, Int32, Int64


@dataclasses.dataclass(frozen=True)
class Lines:
  """The lines of several texts.

  Attributes:
    text: which text each belongs to.
    number: from the top, from 0.
    first: its first character, counted over all texts.
    end: one past its last.
  """

  text: Int64[np.ndarray, "lines"]
  number: Int64[np.ndarray, "lines"]
  first: Int64[np.ndarray, "lines"]
  end: Int64[np.ndarray, "lines"]


def break_lines(
  advance: Int32[np.ndarray, "characters"],
  is_space: Bool[np.ndarray, "characters"],
  is_newline: Bool[np.ndarray, "characters"],
  is_wide: Bool[np.ndarray, "characters"],
  lengths: list[int],
  *,
  width: int,
  max_lines: int,
  words: bool,
) -> Lines:
  """Breaks texts, given one after the other, into lines of at most `width` pixels.

  With `words`, a line is broken at white space, or beside an East Asian wide character; only a word that is longer than
  a whole line is broken within, where the line ends. White space at a break is dropped. Without, a line is broken
  wherever it is full, and drops nothing.

  Args:
    advance: how far each character moves the pen, in pixels.
    is_space: white space.
    is_newline: ends its line and is on none.
    is_wide: East Asian wide characters.
    lengths: how many characters each text has.
    width: pixels a line.
    max_lines: lines a text; what is left is cut.
    words: see above.
  """
  total = len(advance)
  pen = [0, *np.cumsum(advance).tolist()]
  newlines = np.flatnonzero(is_newline).tolist()
  if words:
    starts, stops, next_ink = _words(is_space, is_wide)
    is_space = is_space.tolist()
  found = []
  text_end = 0
  for text, length in enumerate(lengths):
    start, text_end, number = text_end, text_end + length, 0
    next_newline = bisect.bisect_left(newlines, start)
    while start < text_end and number < max_lines:
      paragraph_end = min(newlines[next_newline] if next_newline < len(newlines) else total, text_end)
      next_newline += 1
      while number < max_lines:
        # The last place such that all before it fits; at least one character does, however wide.
        end = bisect.bisect_right(pen, pen[start] + width, start, paragraph_end + 1) - 1
        following = end = max(end, min(start + 1, paragraph_end))
        if words and end < paragraph_end:
          if not is_space[end] and starts[end] > start and pen[stops[end]] - pen[starts[end]] <= width:
            following = end = starts[end]
          else:
            following = min(next_ink[end], paragraph_end)
        found.append((text, number, start, end))
        number += 1
        start = following
        if start >= paragraph_end:
          break
      start = paragraph_end + 1
  table = np.array(found, np.int64).reshape(-1, 4)
  return Lines(*table.T)


def _words(is_space: Bool[np.ndarray, "n"], is_wide: Bool[np.ndarray, "n"]) -> tuple[list[int], list[int], list[int]]:
  """Finds for each character where its word starts and stops, and the next one from it on that is not white space."""
  n = len(is_space)
  place = np.arange(n)
  before = np.roll(is_space | is_wide, 1)
  before[:1] = True
  begins = before | is_space | is_wide  # White space and wide characters are words of their own.
  starts = np.maximum.accumulate(np.where(begins, place, 0))

  def later(here: Bool[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    return np.minimum.accumulate(np.where(here, place, n)[::-1])[::-1]

  stops = np.append(later(begins)[1:], n)
  return starts.tolist(), stops.tolist(), later(~is_space).tolist()
