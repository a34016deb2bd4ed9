"""Fonts by name or file, opened once a process.

    ascii              a small bitmap font of this repository's own: the printable characters of ASCII, nothing to fetch
    unifont            GNU Unifont, planes 0 and 1, fetched when first used: the font of the CLIPPO paper
    PATH.hex[.gz]      a bitmap font of Unifont's format
    PATH.ttf, .otf, .. whatever FreeType reads: TrueType, OpenType, PCF

A list of them is asked in turn for each character. URLs are fetched; see `core.checkpoint.remote`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from core import data_files
from core.checkpoint import remote
from core.errors import UserError, nearest
from core.pp.render.font import Drawer, Font
from core.pp.render.hex_font import HexFont, read
from core.pp.render.truetype_font import TrueTypeFont

_UNIFONT = "https://ftp.gnu.org/gnu/unifont/unifont-15.0.01"
NAMED: dict[str, tuple[str, ...]] = {
  "ascii": (str(data_files.find("core/pp/fonts/ascii.hex")),),
  "unifont": (f"{_UNIFONT}/unifont-15.0.01.hex.gz", f"{_UNIFONT}/unifont_upper-15.0.01.hex.gz"),
}


def load(font: str | Sequence[str], size: int, *, skip_unknown: bool = False) -> Font:
  """Returns the font, or the chain of fonts, at `size` pixels.

  Args:
    font: names or files, see the top of this file.
    size: pixels: the height of a bitmap font's glyphs (16 as drawn), the em of others.
    skip_unknown: leave out what no font has, instead of drawing the first one's sign for it.

  Raises:
    UserError: an unknown name, a file that is not there, is no font, or cannot be fetched.
  """
  specs = (font,) if isinstance(font, str) else tuple(font)
  if not specs or not all(isinstance(spec, str) and spec for spec in specs):
    raise UserError(f"font is a name, a file, or a list of them, got {font!r}")
  return _open(tuple(path for spec in specs for path in _files(spec)), size, skip_unknown)


def _files(spec: str) -> list[Path]:
  paths = [remote.fetch(place) for place in NAMED.get(spec, (spec,))]
  for path in paths:
    if not path.is_file():
      raise UserError(f"font {spec!r}: no such file, nor a name that is known{nearest(spec, NAMED)}")
  return paths


@functools.lru_cache(maxsize=32)
def _open(paths: tuple[Path, ...], size: int, skip_unknown: bool) -> Font:
  return Font([_drawer(path, size) for path in paths], skip_unknown)


def _drawer(path: Path, size: int) -> Drawer:
  is_hex = path.name.endswith((".hex", ".hex.gz"))
  return HexFont(_read(path), size) if is_hex else TrueTypeFont(path, size)


_read = functools.lru_cache(maxsize=8)(read)
