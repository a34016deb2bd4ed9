"""A line that tells on a terminal how far something is, and is drawn again in its place as it goes on."""

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

_A_SECOND = 5  # How often the line is drawn again.

_drawn: "Line | None" = None  # The one that is on the terminal: there is room for one.


class Line:
  """A live line on a terminal, and nothing where there is none. What others print meanwhile comes to stand above it.

  Args:
    stream: where to show it; None is nowhere.

  Attributes:
    live: whether `stream` is a terminal that can draw over what it shows.
  """

  def __init__(self, stream: TextIO | None):
    self.live = stream is not None and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    self._stream = stream
    self._words: str | Callable[[], str] = ""
    self._display: Any = None

  def draw(self, words: str | Callable[[], str]) -> None:
    """Shows `words` as the live line from now on, cut to the terminal's width; costs no more than a microsecond.

    Args:
      words: or what returns them, called from another thread a few times a second.
    """
    self._words = words
    if self.live and self._display is None:
      self._start()

  def say(self, text: str) -> None:
    """Prints `text` for good, in the place of the live line."""
    self.close()
    if self._stream is not None:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    """Takes the live line away; the next `draw` brings it back."""
    global _drawn
    display, self._display = self._display, None
    if display is not None:
      _drawn = None
      display.stop()

  def _start(self) -> None:
    global _drawn
    from rich.console import Console  # Where there is no terminal, a program starts without it.
    from rich.live import Live

    class CursorLeftAlone(Console):
      """Rich hides the cursor while it draws; whoever kills the program would be left without one."""

      def show_cursor(self, show: bool = True) -> bool:
        return False

    if _drawn is not None:
      _drawn.close()
    _drawn = self
    self._display = Live(
      console=CursorLeftAlone(file=self._stream, force_terminal=True, highlight=False, soft_wrap=True),
      get_renderable=self._text,
      refresh_per_second=_A_SECOND,
      transient=True,
      redirect_stdout=sys.stdout.isatty(),
      redirect_stderr=sys.stderr.isatty(),
    )
    self._display.start(refresh=True)

  def _text(self) -> Any:
    from rich.text import Text

    words = self._words if isinstance(self._words, str) else self._words()
    return Text(words, no_wrap=True, overflow="ellipsis")
