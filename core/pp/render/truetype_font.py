"""Fonts that FreeType reads (TrueType, OpenType, PCF, ...), drawn by Pillow glyph by glyph."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from core.errors import UserError
from core.pp.render.font import Glyph

# Is no character and never will be: what a font draws for it, it draws for all that it lacks.
_NO_CHARACTER = chr(0xFFFF)


class TrueTypeFont:
  """Draws glyphs with antialiasing at `size` pixels an em; a line is as high as the font's ascent and descent.

  Glyphs stand by their advances, whole pixels, without kerning or ligatures.
  """

  def __init__(self, path: Path, size: int):
    from PIL import ImageFont

    try:
      # The basic layout: every glyph by itself. The other engine would shape text by its neighbours.
      self._font = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    except (OSError, ValueError) as error:
      raise UserError(f"font {path}: cannot be read at {size} pixels ({error})") from None
    self._ascent, descent = self._font.getmetrics()
    self.line_height = self._ascent + descent
    self._missing = self._ink(_NO_CHARACTER)

  def draw(self, codepoint: int) -> Glyph | None:
    """Returns the glyph of a code point, None where the font has none."""
    character = chr(codepoint)
    ink = self._ink(character)
    if np.array_equal(ink, self._missing) and not character.isspace():
      return None
    return self._glyph(character)

  def unknown(self) -> Glyph:
    """Returns what the font itself draws for what it lacks."""
    return self._glyph(_NO_CHARACTER)

  def _ink(self, character: str) -> UInt8[np.ndarray, "height width"]:
    mask = self._font.getmask(character, mode="L")
    return np.array(mask, np.uint8).reshape(mask.size[::-1])

  def _glyph(self, character: str) -> Glyph:
    ink = self._ink(character)
    left, top, _, _ = self._font.getbbox(character, mode="L", anchor="ls")
    line = np.zeros((self.line_height, ink.shape[1]), np.uint8)
    # The box is relative to the baseline; accents beyond the ascent are cut.
    top += self._ascent
    shown = ink[max(0, -top) : max(0, self.line_height - top)]
    line[max(0, top) : max(0, top) + len(shown)] = shown
    return Glyph(line, left=int(left), advance=round(self._font.getlength(character)))
