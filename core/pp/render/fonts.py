"""Fonts by name or file, opened once a process.

    ascii              a small bitmap font of this repository's own: the printable characters of ASCII, nothing to fetch
    unifont            GNU Unifont 15.0.01, planes 0 and 1, fetched when first used
    unifont-9.0.06     the version of it that the published CLIPPO models have read, fetched likewise
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
from core.pp.render import trimmed
from core.pp.render.font import Drawer, Font
from core.pp.render.hex_font import HexFont, read
from core.pp.render.truetype_font import TrueTypeFont

_UNIFONT = "https://ftp.gnu.org/gnu/unifont/unifont-15.0.01"
_PUBLISHED = "https://unifoundry.com/pub/unifont/unifont-9.0.06/font-builds"
NAMED: dict[str, tuple[str, ...]] = {
  "ascii": (str(data_files.find("core/pp/fonts/ascii.hex")),),
  "unifont": (f"{_UNIFONT}/unifont-15.0.01.hex.gz", f"{_UNIFONT}/unifont_upper-15.0.01.hex.gz"),
  "unifont-9.0.06": (f"{_PUBLISHED}/unifont-9.0.06.hex.gz", f"{_PUBLISHED}/unifont_upper-9.0.06.hex.gz"),
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
  return _open(_paths(font), size, skip_unknown)


def load_trimmed(font: str | Sequence[str], size: int, **options: int | bool | str) -> Font:
  """Returns the letters of .hex fonts, drawn and trimmed as for the published CLIPPO models.

  Args:
    font: as of `load`.
    size: pixels, the height of a letter.
    **options: of `core.pp.render.trimmed.TrimmedLetters`.

  Raises:
    UserError: as of `load`, and a font of another kind, or with letters wider than 16 pixels.
  """
  return _open_trimmed(_paths(font), size, **options)


def _paths(font: str | Sequence[str]) -> tuple[Path, ...]:
  specs = (font,) if isinstance(font, str) else tuple(font)
  if not specs or not all(isinstance(spec, str) and spec for spec in specs):
    raise UserError(f"font is a name, a file, or a list of them, got {font!r}")
  return tuple(path for spec in specs for path in _files(spec))


def _files(spec: str) -> list[Path]:
  paths = [remote.fetch(place) for place in NAMED.get(spec, (spec,))]
  for path in paths:
    if not path.is_file():
      raise UserError(f"font {spec!r}: no such file, nor a name that is known{nearest(spec, NAMED)}")
  return paths


@functools.lru_cache(maxsize=32)
def _open(paths: tuple[Path, ...], size: int, skip_unknown: bool) -> Font:
  return Font([_drawer(path, size) for path in paths], skip_unknown)


@functools.lru_cache(maxsize=32)
def _open_trimmed(paths: tuple[Path, ...], size: int, **options: int | bool | str) -> Font:
  glyphs: dict[int, str] = {}
  for path in reversed(paths):  # Where two have one code point, the earlier one holds.
    if not _is_hex(path):
      raise UserError(f"font {path}: must be a .hex font, whose letters are trimmed; render_text draws others")
    glyphs |= _read(path)
  return trimmed.font_of(glyphs, size, **options)


def _drawer(path: Path, size: int) -> Drawer:
  return HexFont(_read(path), size) if _is_hex(path) else TrueTypeFont(path, size)


def _is_hex(path: Path) -> bool:
  return path.name.endswith((".hex", ".hex.gz"))


_read = functools.lru_cache(maxsize=8)(read)
