"""Glyphs as arrays: drawn once each, then text becomes an image by indexing.

All glyphs of a font at a size lie side by side in one array of pixel columns, each as high as a line of text. A code
point is looked up in a table, which gives where its columns begin, how many there are, and how far it moves the pen.
Glyphs enter when text first asks for them: a font may have a hundred thousand, and a data set uses a few hundred.
"""

import dataclasses
import threading
import unicodedata
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Int32, Integer, UInt8

_TABLE = 0x110000  # Unicode ends there.
_NEWLINES = frozenset("\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")


@dataclasses.dataclass(frozen=True)
class Glyph:
  """A drawn character.

  Attributes:
    ink: how much of each pixel it covers, 0 to 255; the rows are a line's.
    left: where its first column is, relative to the pen, in pixels.
    advance: how far the pen moves, in pixels.
  """

  ink: UInt8[np.ndarray, "line width"]
  left: int
  advance: int


class Drawer(Protocol):
  """What reads a font file: `hex_font.HexFont`, `truetype_font.TrueTypeFont`."""

  line_height: int

  def draw(self, codepoint: int) -> Glyph | None: ...

  def unknown(self) -> Glyph: ...


@dataclasses.dataclass(frozen=True)
class Glyphs:
  """The glyphs drawn so far, `n` of them.

  Attributes:
    columns: all pixel columns, glyph after glyph.
    first: of each glyph, its first column.
    count: of each glyph, how many columns.
    left: see `Glyph`.
    advance: see `Glyph`.
    is_space: white space, at which lines are broken and which does not begin one.
    is_newline: ends a line.
    is_wide: East Asian wide characters, before and after which a line may be broken.
    overlap: whether the columns of two neighbours may fall on one pixel.
  """

  columns: UInt8[np.ndarray, "columns line"]
  first: Int32[np.ndarray, "n"]
  count: Int32[np.ndarray, "n"]
  left: Int32[np.ndarray, "n"]
  advance: Int32[np.ndarray, "n"]
  is_space: Bool[np.ndarray, "n"]
  is_newline: Bool[np.ndarray, "n"]
  is_wide: Bool[np.ndarray, "n"]
  overlap: bool


class Font:
  """A font at a size, with the glyphs that were asked for. Threads may share it."""

  def __init__(self, drawers: list[Drawer], skip_unknown: bool = False):
    """Makes a font of drawers, asked in turn; what none has is left out, or drawn as the first draws the unknown."""
    self.line_height = max(drawer.line_height for drawer in drawers)
    self._drawers, self._skip_unknown = drawers, skip_unknown
    self._lock = threading.Lock()
    self._table = np.full(_TABLE, -1, np.int32)
    nothing = np.zeros(0, np.int32)
    empty = np.zeros((0, self.line_height), np.uint8)
    self._glyphs = Glyphs(empty, *[nothing] * 4, *[nothing.astype(bool)] * 3, overlap=False)

  def look_up(self, codepoints: Integer[np.ndarray, "n"]) -> tuple[Int32[np.ndarray, "n"], Glyphs]:
    """Returns the number of each code point's glyph, and the glyphs."""
    numbers = self._table[codepoints]
    if len(numbers) and numbers.min() < 0:
      with self._lock:
        new = np.unique(codepoints[self._table[codepoints] < 0])
        if len(new):
          # The glyphs before the table: whoever finds a number without the lock finds its glyph, too.
          count = len(self._glyphs.first)
          self._glyphs = self._with(new)
          self._table[new] = count + np.arange(len(new), dtype=np.int32)
      numbers = self._table[codepoints]
    return numbers, self._glyphs

  def _with(self, codepoints: Integer[np.ndarray, "n"]) -> Glyphs:
    old = self._glyphs
    drawn = [self._draw(int(codepoint)) for codepoint in codepoints]
    characters = [chr(codepoint) for codepoint in codepoints]
    count = np.array([glyph.ink.shape[1] for glyph in drawn], np.int32)
    left = np.array([glyph.left for glyph in drawn], np.int32)
    advance = np.array([glyph.advance for glyph in drawn], np.int32)
    new = dict(
      columns=np.concatenate([glyph.ink.T for glyph in drawn]),
      first=len(old.columns) + np.cumsum(count, dtype=np.int32) - count,
      count=count,
      left=left,
      advance=advance,
      is_space=np.array([c.isspace() for c in characters]),
      is_newline=np.array([c in _NEWLINES for c in characters]),
      is_wide=np.array([unicodedata.east_asian_width(c) in "WF" for c in characters]),
    )
    joined = {key: np.concatenate([getattr(old, key), value]) for key, value in new.items()}
    return Glyphs(**joined, overlap=old.overlap or bool(np.any((left < 0) | (left + count > advance))))

  def _draw(self, codepoint: int) -> Glyph:
    character = chr(codepoint)
    nothing = Glyph(np.zeros((self.line_height, 0), np.uint8), 0, 0)
    if character in _NEWLINES:
      return nothing
    if character == "\t":
      return self._draw(ord(" "))
    # Controls, joiners, marks of direction and selectors of variants are not to be seen.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs") or 0xFE00 <= codepoint <= 0xFE0F:
      return nothing
    for drawer in self._drawers:
      if glyph := drawer.draw(codepoint):
        return self._padded(glyph)
    return nothing if self._skip_unknown else self._padded(self._drawers[0].unknown())

  def _padded(self, glyph: Glyph) -> Glyph:
    """Returns the glyph in a line of this font's height, which is the greatest among its drawers'."""
    below = self.line_height - len(glyph.ink)
    return dataclasses.replace(glyph, ink=np.pad(glyph.ink, [(0, below), (0, 0)])) if below else glyph
