"""Text to images: what CLIPPO reads in place of tokens (Tschannen et al. 2023, section 3)."""

import unicodedata

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from core.pp.render.font import Font, Glyphs
from core.pp.render.lines import Lines, break_lines
from core.pp.render.trimmed import rows_by_width


def render(
  texts: list[str],
  font: Font,
  size: tuple[int, int],
  *,
  ink: int = 0,
  background: int = 127,
  words: bool = True,
  max_chars: int = 768,
  channels: int = 3,
) -> UInt8[np.ndarray, "texts height width channels"]:
  """Draws each text from the top left, in lines, until it ends or the image is full.

  Characters stand in the order of the text, whatever their script's direction. What is composed of a letter and marks
  is drawn as one glyph where Unicode has one (NFC).

  Args:
    texts: any Unicode.
    font: of `core.pp.render.fonts.load`.
    size: (height, width) in pixels.
    ink: the grey level of text, 0 to 255.
    background: that of the rest.
    words: break lines between words, not wherever they are full; see `core.pp.render.lines`.
    max_chars: characters a text; what is longer is cut.
    channels: how often the grey level is repeated.
  """
  texts = [_normal(text)[:max_chars] for text in texts]
  numbers, glyphs = font.look_up(_codepoints(texts))
  max_lines = size[0] // font.line_height
  lines = break_lines(
    glyphs.advance[numbers],
    glyphs.is_space[numbers],
    glyphs.is_newline[numbers],
    glyphs.is_wide[numbers],
    [len(text) for text in texts],
    width=size[1],
    max_lines=max_lines,
    words=words,
  )
  shade = np.rint(np.linspace(background, ink, 256)).astype(np.uint8)
  columns = _columns(numbers, glyphs, lines, max_lines, size[1])
  return _images(columns, len(texts), max_lines, size, font.line_height, background, shade, channels)


def render_trimmed(
  texts: list[str], font: Font, size: tuple[int, int], *, background: int, max_chars: int | None, channels: int = 3
) -> UInt8[np.ndarray, "texts height width channels"]:
  """Draws each text from the top left as for the published CLIPPO models, in rows that are broken at any letter.

  The last row is cut where the image ends.

  Args:
    texts: any Unicode.
    font: of `core.pp.render.fonts.load_trimmed`, whose letters bring their grey levels.
    size: (height, width) in pixels; the width more than a letter's height, which is the most that one may be wide.
    background: the grey level of what is no letter.
    max_chars: characters a text; what is longer is cut. None takes all.
    channels: how often the grey level is repeated.
  """
  texts = [text[:max_chars] for text in texts]
  numbers, glyphs = font.look_up(_codepoints(texts))
  max_rows = -(-size[0] // font.line_height)
  rows = rows_by_width(glyphs.advance[numbers], [len(text) for text in texts], width=size[1], max_rows=max_rows)
  columns = _columns(numbers, glyphs, rows, max_rows, size[1])
  shade = np.arange(256, dtype=np.uint8)  # As they are.
  return _images(columns, len(texts), max_rows, size, font.line_height, background, shade, channels)


def _codepoints(texts: list[str]) -> UInt32[np.ndarray, "characters"]:
  return np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)


def _images(
  columns: tuple[Int64[np.ndarray, "columns"], UInt8[np.ndarray, "columns line"]],
  count: int,
  max_lines: int,
  size: tuple[int, int],
  line_height: int,
  background: int,
  shade: UInt8[np.ndarray, "256"],
  channels: int,
) -> UInt8[np.ndarray, "count height width channels"]:
  """Returns the images of `count` texts: the pixels of `_columns` in their shade, and `background` for the rest."""
  place, covered = columns
  height, width = size
  canvas = np.full((count * max_lines * width, line_height), background, np.uint8)
  canvas[place] = shade[covered]
  canvas = canvas.reshape(count, max_lines, width, line_height).swapaxes(2, 3)
  images = np.empty((count, height, width, channels), np.uint8)
  bottom = max_lines * line_height
  images[:, bottom:] = background
  canvas = canvas.reshape(count, bottom, width)[:, :height]
  for channel in range(channels):  # Several times as fast as one assignment that broadcasts over a short last axis.
    images[:, :bottom, :, channel] = canvas
  return images


def _normal(text: str) -> str:
  text = text if text.isascii() else unicodedata.normalize("NFC", text)
  return text.replace("\r\n", "\n")


def _columns(
  numbers: Int64[np.ndarray, "characters"], glyphs: Glyphs, lines: Lines, max_lines: int, width: int
) -> tuple[Int64[np.ndarray, "columns"], UInt8[np.ndarray, "columns line"]]:
  """Returns the pixel columns that have ink, and where each stands among all columns of all lines of all images."""
  characters = _ranges(lines.first, lines.end - lines.first)
  line = np.repeat(np.arange(len(lines.first)), lines.end - lines.first)
  drawn = numbers[characters]
  advance = glyphs.advance[drawn]
  # The pen within the line: the sum so far, less what it was at the line's first character.
  pen = np.cumsum(advance) - advance
  starts = np.flatnonzero(np.diff(line, prepend=-1))
  pen = pen - np.repeat(pen[starts], np.diff(starts, append=len(line)))
  count = glyphs.count[drawn]
  x = _ranges(pen + glyphs.left[drawn], count)
  line = np.repeat(line, count)
  place = (lines.text[line] * max_lines + lines.number[line]) * width + x
  source = _ranges(glyphs.first[drawn], count)
  inside = (x >= 0) & (x < width)
  if not inside.all():
    place, source = place[inside], source[inside]
  if not glyphs.overlap or not len(place):
    return place, glyphs.columns[source]
  order = np.argsort(place, kind="stable")
  place, first = np.unique(place[order], return_index=True)
  return place, np.maximum.reduceat(glyphs.columns[source[order]], first, axis=0)


def _ranges(first: Int64[np.ndarray, "n"], count: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "total"]:
  """Returns `first[0], first[0] + 1, ...` (`count[0]` of them), then the same from `first[1]`, and so on."""
  begun = np.cumsum(count) - count
  return np.repeat(np.asarray(first, np.int64) - begun, count) + np.arange(count.sum())
