"""Rendered text against Pillow's drawing of the same fonts, `textwrap`, glyphs made by hand, a picture looked at."""

import gzip
import random
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from core import data_files
from core.errors import UserError
from core.pp.render import fonts, hex_font
from core.pp.render.render import render

WITNESS = data_files.find("core/pp/render/witness")
ASCII = "".join(map(chr, range(0x20, 0x7F)))
PANGRAM = "The quick brown fox jumps over the lazy dog: 0123456789, {[(@)]} & so on."

# An arrow to the right, and a wide frame with a dot in it.
BY_HAND = {
  "→": [
    "........",
    "........",
    "........",
    "........",
    "....#...",
    ".....#..",
    "######..",
    "######..",
    ".....#..",
    "....#...",
  ],
  "囗": ["################", "#..............#", "#......##......#", "#..............#", "################"],
}


def hex_line(character, rows):
  width = len(rows[0])
  bits = "".join((row.replace(".", "0").replace("#", "1")) for row in rows).ljust(16 * width, "0")
  return f"{ord(character):04X}:{int(bits, 2):0{4 * width}X}"


def pixels(rows, height=16):
  found = np.array([[sign == "#" for sign in row] for row in rows])
  return np.pad(found, [(0, height - len(rows)), (0, 0)])


def ink(texts, font, size, **kwargs):
  """Only the ink: uint8 [texts, height, width], 255 in the middle of a stroke."""
  return render(texts, font, size, ink=255, background=0, channels=1, **kwargs)[..., 0]


def drawn_by_pillow(lines, font, size, line_height, ascent):
  image = Image.new("L", size[::-1])
  for number, line in enumerate(lines):
    ImageDraw.Draw(image).text((0, number * line_height + ascent), line, font=font, fill=255, anchor="ls")
  return np.asarray(image)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
  path = tmp_path_factory.mktemp("fonts") / "two.hex"
  path.write_text("# two glyphs\n" + "\n".join(hex_line(*each) for each in BY_HAND.items()) + "\n")
  return path


@pytest.fixture(scope="module")
def outline(tmp_path_factory):
  """Pillow's own TrueType font as a file."""
  path = tmp_path_factory.mktemp("fonts") / "aileron.ttf"
  path.write_bytes(ImageFont.load_default(16).font_bytes)
  return path


def test_two_glyphs_made_by_hand_stand_where_they_should(by_hand):
  image = ink(["→囗→\n囗"], fonts.load(str(by_hand), 16), (40, 40))[0]
  arrow, frame = (pixels(rows) for rows in BY_HAND.values())
  expected = np.zeros((40, 40), bool)
  expected[:16, :32] = np.concatenate([arrow, frame, arrow], axis=1)
  expected[16:32, :16] = frame
  assert np.array_equal(image, expected * 255)


def test_a_half_width_and_a_full_width_glyph_scale_with_the_size(by_hand):
  image = ink(["→囗"], fonts.load(str(by_hand), 8), (8, 12))[0]
  whole = ink(["→囗"], fonts.load(str(by_hand), 16), (16, 24))[0]
  averaged = whole.reshape(8, 2, 12, 2).mean(axis=(1, 3))
  assert np.abs(image - averaged).max() <= 1


def test_unifont_is_drawn_as_pillow_draws_its_opentype_form(tmp_path):
  witness = np.load(WITNESS / "unifont.npz")
  path = tmp_path / "unifont.hex.gz"
  path.write_bytes(gzip.compress(str(witness["hex"]).encode()))
  images = ink(list(witness["texts"]), fonts.load(str(path), 16), witness["images"].shape[1:])
  assert np.array_equal(images, witness["images"] * 255)


def test_the_shipped_font_is_drawn_as_pillow_draws_it(tmp_path):
  """Through BDF, whose bitmaps are the same digits, and FreeType's reader of it."""
  lines = (Path(fonts.NAMED["ascii"][0])).read_text().split()
  assert len(lines) == len(ASCII)
  bdf = ["STARTFONT 2.1", "FONT -shipped", "SIZE 16 75 75", "FONTBOUNDINGBOX 8 16 0 -2", "STARTPROPERTIES 5"]
  bdf += ["PIXEL_SIZE 16", 'CHARSET_REGISTRY "ISO10646"', 'CHARSET_ENCODING "1"', "FONT_ASCENT 14", "FONT_DESCENT 2"]
  bdf += ["ENDPROPERTIES", f"CHARS {len(lines)}"]
  for code, digits in (line.split(":") for line in lines):
    rows = [digits[at : at + 2] for at in range(0, 32, 2)]
    bdf += [f"STARTCHAR U{code}", f"ENCODING {int(code, 16)}", "SWIDTH 500 0", "DWIDTH 8 0", "BBX 8 16 0 -2"]
    bdf += ["BITMAP", *rows, "ENDCHAR"]
  path = tmp_path / "shipped.bdf"
  path.write_text("\n".join([*bdf, "ENDFONT", ""]))
  font = ImageFont.truetype(str(path), 16, layout_engine=ImageFont.Layout.BASIC)
  expected = drawn_by_pillow([ASCII, PANGRAM], font, (32, 800), 16, 14)
  assert np.array_equal(ink([f"{ASCII}\n{PANGRAM}"], fonts.load("ascii", 16), (32, 800))[0], expected)


@pytest.mark.parametrize("size", [9, 16, 30])
def test_a_truetype_font_is_drawn_as_pillow_draws_it(outline, size):
  pillow = ImageFont.truetype(str(outline), size, layout_engine=ImageFont.Layout.BASIC)
  font = fonts.load(str(outline), size)
  ascent, descent = pillow.getmetrics()
  shape = (2 * (ascent + descent), 95 * size)
  expected = drawn_by_pillow([ASCII, PANGRAM], pillow, shape, ascent + descent, ascent)
  image = ink([f"{ASCII}\n{PANGRAM}"], font, shape)[0]
  # Where two glyphs touch, Pillow adds what each covers; ours is the greater.
  touching = image != expected
  assert touching.mean() < 1e-3
  assert np.all(image[touching] <= expected[touching])


def test_the_picture_that_was_looked_at():
  text = "A photo of the digits three and seven.\nSecond line; a verylongwordthatgoesonandon is broken."
  image = render([text], fonts.load("ascii", 16), (112, 112))[0]
  assert np.array_equal(image, np.asarray(Image.open(WITNESS / "paragraph.png").convert("RGB")))


def lines_of(text, columns, count, **kwargs):
  """The lines of `text` as they stand in its image, read back glyph by glyph."""
  font = fonts.load("ascii", 16)
  alphabet = ink(list(ASCII), font, (16, 8))
  names = {glyph.tobytes(): character for glyph, character in zip(alphabet, ASCII)}
  image = ink([text], font, (16 * count, 8 * columns), **kwargs)[0]
  cells = image.reshape(count, 16, columns, 8).swapaxes(1, 2)
  return ["".join(names[np.ascontiguousarray(cell).tobytes()] for cell in row).rstrip() for row in cells]


@pytest.mark.parametrize("columns", [1, 5, 8, 13])
def test_lines_break_between_words_as_textwrap_breaks_them(columns):
  rng = random.Random(columns)
  for _ in range(30):
    words = ["".join(rng.choices("abcdefgh", k=rng.choice([1, 2, 3, 5, 8, 14]))) for _ in range(rng.randint(1, 12))]
    text = "".join(word + rng.choice([" ", " ", " ", "  ", "\n"]) for word in words).rstrip()
    wrap = textwrap.TextWrapper(columns, break_on_hyphens=False)
    expected = [line.rstrip() for paragraph in text.split("\n") for line in wrap.wrap(paragraph)]
    assert lines_of(text, columns, 200 // columns + 30)[: len(expected)] == expected


def test_lines_break_anywhere_where_words_do_not_matter():
  text = "".join(random.Random(0).choices("abc d", k=95))
  expected = [text[at : at + 10].rstrip() for at in range(0, 95, 10)]
  assert lines_of(text, 10, 10, words=False) == expected


def test_empty_lines_tabs_and_line_ends_of_other_systems():
  assert lines_of("a\n\nb\r\nc\td\u200b", 8, 5) == ["a", "", "b", "c d", ""]


def test_what_has_no_room_is_cut():
  whole = lines_of(PANGRAM, 10, 20)
  assert lines_of(PANGRAM, 10, 3) == whole[:3]
  assert "".join(lines_of(PANGRAM, 10, 20, max_chars=12)) == PANGRAM[:10].rstrip() + PANGRAM[10:12]


def test_a_line_may_break_beside_a_wide_character(by_hand):
  image = ink(["→ →囗囗"], fonts.load([str(by_hand), "ascii"], 16), (48, 40))[0]
  arrow, frame = (pixels(rows) for rows in BY_HAND.values())
  assert np.array_equal(image[16:32, :16] > 0, frame)
  assert np.array_equal(image[:16, 16:24] > 0, arrow)


def test_a_batch_is_drawn_as_each_text_alone(outline):
  texts = [PANGRAM, "", "x", PANGRAM[::-1], "a\nb"]
  for font in (fonts.load("ascii", 16), fonts.load(str(outline), 14)):
    together = render(texts, font, (50, 60))
    assert all(np.array_equal(image, render([text], font, (50, 60))[0]) for image, text in zip(together, texts))


def test_threads_that_share_a_font_draw_the_same(outline):
  texts = [ASCII[at : at + 7] for at in range(80)]
  fonts._open.cache_clear()
  font = fonts.load(str(outline), 21)
  with ThreadPoolExecutor(8) as pool:
    drawn = list(pool.map(lambda text: render([text], font, (40, 160)), texts))
  alone = fonts.Font([fonts._drawer(outline, 21)])
  assert all(np.array_equal(image, render([text], alone, (40, 160))) for image, text in zip(drawn, texts))


def test_grey_levels_and_channels():
  image = render(["→"], fonts.load("ascii", 16), (16, 8), ink=200, background=10)
  assert image.shape == (1, 16, 8, 3)
  assert set(np.unique(image)) == {10, 200}
  assert np.array_equal(image[..., 0], image[..., 2])


def test_what_no_font_has_is_a_box_or_nothing():
  box = ink(["世"], fonts.load("ascii", 16), (16, 8))[0]
  assert box[2, 1:7].all()
  assert not box[3:13, 2:6].any()
  assert not ink(["世"], fonts.load("ascii", 16, skip_unknown=True), (16, 8)).any()


def test_the_next_font_of_a_chain_draws_what_the_first_lacks(by_hand, outline):
  chain = fonts.load(["ascii", str(by_hand)], 16)
  assert np.array_equal(ink(["囗"], chain, (16, 16))[0] > 0, pixels(BY_HAND["囗"]))
  assert np.array_equal(ink(["a"], chain, (16, 16)), ink(["a"], fonts.load("ascii", 16), (16, 16)))
  missing = fonts.load([str(outline), str(by_hand)], 16)
  assert np.array_equal(ink(["囗"], missing, (20, 16))[0] > 0, pixels(BY_HAND["囗"], 20))


def test_unifont_by_name_is_the_glyphs_of_both_planes(tmp_path, monkeypatch):
  def fetch(place):
    character = "😀" if "upper" in place else "→"
    path = tmp_path / place.rpartition("/")[2]
    path.write_bytes(gzip.compress(hex_line(character, BY_HAND["→"]).encode()))
    return path

  monkeypatch.setattr(fonts.remote, "fetch", fetch)
  image = ink(["→😀"], fonts.load("unifont", 16), (16, 16))[0]
  assert np.array_equal(image[:, :8] > 0, pixels(BY_HAND["→"]))
  assert np.array_equal(image[:, 8:], image[:, :8])


@pytest.mark.parametrize(
  "content, line",
  [
    (b"", "holds no glyphs"),
    (b"0041:00\n", "line 1: not a glyph"),
    (b"\n0041:" + b"0" * 32 + b"\nhello\n", "line 3: not a glyph \\('hello'\\)"),
    (b"FFFFFF:" + b"0" * 32, "line 1: not a glyph"),
  ],
)
def test_a_file_that_is_no_hex_font_is_refused(tmp_path, content, line):
  path = tmp_path / "bad.hex"
  path.write_bytes(content)
  with pytest.raises(UserError, match=f"font {path}.*{line}"):
    fonts.load(str(path), 16)


def test_other_files_that_are_no_fonts_are_refused(tmp_path):
  damaged = tmp_path / "bad.hex.gz"
  damaged.write_bytes(gzip.compress(b"0041:" + b"0" * 32)[:-9])
  other = tmp_path / "bad.ttf"
  other.write_bytes(b"hello")
  with pytest.raises(UserError, match="cannot be read"):
    fonts.load(str(damaged), 16)
  with pytest.raises(UserError, match="cannot be read at 16 pixels"):
    fonts.load(str(other), 16)
  with pytest.raises(UserError, match=r"'unifnt': no such file.*did you mean 'unifont'"):
    fonts.load("unifnt", 16)
  with pytest.raises(UserError, match="a list of them, got \\[\\]"):
    fonts.load([], 16)


def test_a_hex_font_may_begin_with_a_byte_order_mark(tmp_path):
  (tmp_path / "font.hex").write_bytes(b"\xef\xbb\xbf0041:" + b"00" * 16 + b"\r\n")
  assert hex_font.read(tmp_path / "font.hex") == {0x41: "00" * 16}
