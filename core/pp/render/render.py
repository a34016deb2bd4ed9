"""Text to images: what CLIPPO reads in place of tokens (Tschannen et al. 2023, section 3)."""

import unicodedata

import numpy as np
from jaxtyping import Int64, UInt8

from core.pp.render.font import Font, Glyphs
from core.pp.render.lines import Lines, break_lines


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
  height, width = size
  max_lines = height // font.line_height
  texts = [_normal(text)[:max_chars] for text in texts]
  codepoints = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
  numbers, glyphs = font.look_up(codepoints)
  lines = break_lines(
    glyphs.advance[numbers],
    glyphs.is_space[numbers],
    glyphs.is_newline[numbers],
    glyphs.is_wide[numbers],
    [len(text) for text in texts],
    width=width,
    max_lines=max_lines,
    words=words,
  )
  place, columns = _columns(numbers, glyphs, lines, max_lines, width)
  shade = np.rint(np.linspace(background, ink, 256)).astype(np.uint8)
  canvas = np.full((len(texts) * max_lines * width, font.line_height), background, np.uint8)
  canvas[place] = shade[columns]
  canvas = canvas.reshape(len(texts), max_lines, width, font.line_height).swapaxes(2, 3)
  images = np.empty((len(texts), height, width, channels), np.uint8)
  bottom = max_lines * font.line_height
  images[:, bottom:] = background
  canvas = canvas.reshape(len(texts), bottom, width)
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
