"""GNU Unifont's .hex files: a bitmap a line, the simplest font format there is.

    0041:0000000018242442427E424242420000

A line is a code point and the rows of its glyph, all in hexadecimal, the leftmost pixel in the highest bit. Every glyph
has 16 rows; the number of digits tells the width: 32 for 8 pixels (half-width), 64 for 16 (full-width), 96 and 128 for
24 and 32 (P. Hardy, "The Unifont Utilities", unifoundry.com). Where two lines have one code point, the later one holds.
"""

import gzip
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from core import text_lines
from core.errors import UserError
from core.pp.render.font import Glyph

ROWS = 16
_LINE = re.compile(rb"([0-9A-Fa-f]{4,6}):((?:[0-9A-Fa-f]{32}){1,4})")
_REPLACEMENT = 0xFFFD


def read(path: Path) -> dict[int, str]:
  """Returns the glyphs of a file, `.hex` or `.hex.gz`: code point -> hexadecimal digits.

  Raises:
    UserError: it cannot be read, holds no glyph, or has a line that is none, by its number.
  """
  try:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
  except (OSError, EOFError) as error:  # What is no gzip file is an OSError, too.
    raise UserError(f"font {path}: cannot be read ({error})") from None
  glyphs = {}
  for number, line in enumerate(text_lines.of_bytes(content), 1):
    line = line.strip()
    if not line or line.startswith(b"#"):
      continue
    found = _LINE.fullmatch(line)
    if not found or int(found[1], 16) > 0x10FFFF:
      raise UserError(
        f"font {path} line {number}: not a glyph ({line[:40].decode(errors='replace')!r}); a line is a code point, "
        "a colon and 32, 64, 96 or 128 hexadecimal digits"
      )
    glyphs[int(found[1], 16)] = found[2].decode()
  if not glyphs:
    raise UserError(f"font {path}: holds no glyphs")
  return glyphs


def bitmap(digits: str) -> UInt8[np.ndarray, "16 width"]:
  """Returns a glyph's pixels, 255 where there is ink."""
  rows = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(ROWS, -1)
  return np.unpackbits(rows, axis=1) * np.uint8(255)


class HexFont:
  """Draws the glyphs of a .hex file, `size` pixels high; what the file lacks, as its U+FFFD or an empty box."""

  def __init__(self, glyphs: Mapping[int, str], size: int):
    self.line_height = size
    self._glyphs, self._scale = glyphs, size / ROWS

  def draw(self, codepoint: int) -> Glyph | None:
    """Returns the glyph of a code point, None where the file has none."""
    digits = self._glyphs.get(codepoint)
    if digits is None:
      return None
    ink = self._scaled(bitmap(digits))
    width = ink.shape[1]
    # A combining mark is drawn over what it follows.
    combining = unicodedata.category(chr(codepoint)) in ("Mn", "Me")
    return Glyph(ink, left=-width if combining else 0, advance=0 if combining else width)

  def unknown(self) -> Glyph:
    """Returns what stands for a code point that the file lacks."""
    if _REPLACEMENT in self._glyphs:
      return self.draw(_REPLACEMENT)
    box = np.zeros((ROWS, ROWS // 2), np.uint8)
    box[2:14, 1:7] = 255
    box[3:13, 2:6] = 0
    ink = self._scaled(box)
    return Glyph(ink, left=0, advance=ink.shape[1])

  def _scaled(self, ink: UInt8[np.ndarray, "16 width"]) -> UInt8[np.ndarray, "size scaled"]:
    if self._scale == 1:
      return ink
    from PIL import Image

    size = max(1, round(ink.shape[1] * self._scale)), self.line_height
    return np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BOX))
