"""Lines that are drawn again and again in one place, on a terminal."""

import shutil

CLEAR = "\r\x1b[K"  # Back to the start of the terminal's line, and empty it.


def redrawn(line: str) -> str:
  """What draws `line` in place of the terminal's last one, cut to its width."""
  return CLEAR + line[: shutil.get_terminal_size().columns - 1]
