"""Text drawn as for the published CLIPPO models (Tschannen et al. 2023): letters trimmed one by one, in rows.

The facts are those of the published code (big_vision's `pp/proj/clippo/pp_ops.py`), whose pictures the weights have
read. A letter is a square of `size` pixels, in which a glyph of half that width stands on the left. It is trimmed to
the columns from `spacing` left of its first ink up to, and without, `spacing` right of its last: with a spacing of 1
one empty column on the left and none on the right, with 0 without its last column of ink. It has `min_width` columns at
least, as far as the square goes. Nothing is no letter: controls and line ends are drawn as the font has them, and what
the font lacks is empty.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int32

from core.errors import UserError
from core.pp.render.font import Font, Glyph
from core.pp.render.hex_font import ROWS, bitmap
from core.pp.render.lines import Lines


class TrimmedLetters:
  """Draws the letters of a .hex font in grey levels, cut down to their columns.

  Args:
    glyphs: code point -> hexadecimal digits, see `core.pp.render.hex_font`.
    size: pixels, the height of a letter.
    ink: the grey level of text, 0 to 255.
    background: that of the rest.
    monospace: keep the whole square of each letter.
    spacing: pixels, see the top of this file.
    min_width: pixels.
    resize_method: how letters become another `size` than 16, a method of `tf.image.resize`, which then does it. What
      that gives beyond ink and background is clipped.
  """

  def __init__(
    self,
    glyphs: Mapping[int, str],
    size: int,
    *,
    ink: int,
    background: int,
    monospace: bool,
    spacing: int,
    min_width: int,
    resize_method: str,
  ):
    self.line_height = size
    self._glyphs, self._ink, self._background = glyphs, ink, background
    self._monospace, self._spacing, self._min_width = monospace, spacing, min_width
    self._resize_method = resize_method

  def draw(self, codepoint: int) -> Glyph:
    """Returns the letter, its columns in grey levels."""
    covered = self._square(codepoint)
    if not self._monospace:
      covered = self._trimmed(covered)
    # Cut to whole grey levels, as a cast does it.
    grey = covered * np.float32(self._ink - self._background) + np.float32(self._background)
    return Glyph(np.clip(grey, 0, 255).astype(np.uint8), left=0, advance=covered.shape[1])

  def unknown(self) -> Glyph:
    """Returns a letter of no ink."""
    return self.draw(-1)

  def _square(self, codepoint: int) -> Float[np.ndarray, "size size"]:
    square = np.zeros((ROWS, ROWS), np.uint8)
    if digits := self._glyphs.get(codepoint):
      glyph = bitmap(digits) > 0
      square[:, : glyph.shape[1]] = glyph
    if self.line_height != ROWS:
      import tensorflow as tf

      size = (self.line_height, self.line_height)
      square = tf.image.resize(square[..., None], size, method=self._resize_method, antialias=True).numpy()[..., 0]
    return square.astype(np.float32)

  def _trimmed(self, square: Float[np.ndarray, "size size"]) -> Float[np.ndarray, "size width"]:
    columns = np.flatnonzero(square.max(axis=0))
    first, last = (columns[0], columns[-1]) if len(columns) else (0, 0)
    first = max(first - self._spacing, 0)
    return square[:, first : max(last + self._spacing, first + self._min_width)]


class _Letters(Font):
  """A font of `TrimmedLetters`, to which no character is special."""

  def _draw(self, codepoint: int) -> Glyph:
    return self._drawers[0].draw(codepoint)


def font_of(glyphs: Mapping[int, str], size: int, **options: int | bool | str) -> Font:
  """Returns the letters of a .hex font at a size; `options` are those of `TrimmedLetters`.

  Raises:
    UserError: a glyph is wider than 16 pixels.
  """
  if wide := next((codepoint for codepoint, digits in glyphs.items() if len(digits) > 4 * ROWS), None):
    raise UserError(f"font: U+{wide:04X} is wider than {ROWS} pixels, the most that a trimmed letter may be")
  return _Letters([TrimmedLetters(glyphs, size, **options)])


def rows_by_width(advance: Int32[np.ndarray, "letters"], lengths: list[int], *, width: int, max_rows: int) -> Lines:
  """Breaks texts, given one after the other, into rows at any letter.

  A letter's row is the width of its text up to and with it, divided by `width` less the text's widest letter. So each
  row has room, and one that a wide letter leaps over stays empty.

  Args:
    advance: of each letter, its width in pixels.
    lengths: how many letters each text has.
    width: pixels a row, more than any letter has.
    max_rows: rows a text; what is left is cut.
  """
  found, end = [], 0
  for text, length in enumerate(lengths):
    begin, end = end, end + length
    widths = advance[begin:end].astype(np.int64)
    row = np.cumsum(widths) // (width - widths.max(initial=0))
    first = np.flatnonzero(np.diff(row, prepend=-1))
    lines = zip(row[first].tolist(), (begin + first).tolist(), [*(begin + first[1:]).tolist(), end])
    found += [(text, *line) for line in lines if line[0] < max_rows]
  return Lines(*np.array(found, np.int64).reshape(-1, 4).T)
