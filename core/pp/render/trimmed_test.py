"""Text as the published CLIPPO code draws it: its own pictures, and letters trimmed and placed by hand."""

import json

import numpy as np
import pytest

from core import data_files
from core.data.columns import bytes_column
from core.errors import UserError
from core.pp import builder
from core.pp.render import fonts, hex_font

WITNESS = np.load(data_files.find("core/pp/render/witness/clippo.npz"))
CASES = WITNESS["cases"].tolist()
SQUARE = 16


@pytest.fixture(scope="module")
def font(tmp_path_factory):
  path = tmp_path_factory.mktemp("fonts") / "font.hex"
  path.write_text(str(WITNESS["hex"]))
  return str(path)


def drawn(texts, font, **options):
  pp = f"render_unifont(font={font!r}, {', '.join(f'{key}={value!r}' for key, value in options.items())})"
  return builder.get_batched_fn(pp)({"texts": bytes_column(texts)})["image"]


def by_hand(text, glyphs, size, spacing=1, min_width=4):
  """The published drawing letter by letter: 255 where there is ink."""
  letters = []
  for character in text:
    square = np.zeros((SQUARE, SQUARE), np.uint8)
    if ord(character) in glyphs:
      rows = hex_font.bitmap(glyphs[ord(character)])
      square[:, : rows.shape[1]] = rows
    inked = [x for x in range(SQUARE) if square[:, x].any()] or [0]
    left = max(inked[0] - spacing, 0)
    letters.append(square[:, left : max(inked[-1] + spacing, left + min_width)])
  step = size - max(letter.shape[1] for letter in letters)
  image, total, pens = np.zeros((size, size), np.uint8), 0, {}
  for letter in letters:
    total += letter.shape[1]
    row = total // step
    pen = pens.get(row, 0)
    pens[row] = pen + letter.shape[1]
    part = image[row * SQUARE : (row + 1) * SQUARE, pen : pens[row]]
    part[:] = letter[: len(part)]
  return image


@pytest.mark.parametrize("case", range(len(CASES)), ids=CASES)
def test_pictures_are_those_of_the_published_code(font, case):
  options = json.loads(CASES[case])
  images = drawn(WITNESS["texts"].tolist(), font, **options)
  np.testing.assert_array_equal(images, WITNESS[f"images{case}"][..., None].repeat(3, axis=-1))


@pytest.mark.parametrize("size", [17, 33, 96])
def test_random_texts_are_drawn_as_letter_by_letter_in_numpy(font, size):
  glyphs = hex_font.read(data_files.find("core/pp/fonts/ascii.hex"))
  rng = np.random.default_rng(size)
  texts = ["".join(map(chr, rng.integers(0x1E, 0x82, rng.integers(1, 120)))) for _ in range(20)]
  images = drawn(
    texts, "ascii", image_size=size, lower=False, text_brightness=255, background_brightness=0, empty="keep"
  )
  for text, image in zip(texts, images):
    np.testing.assert_array_equal(image[..., 0], by_hand(text, glyphs, size))


def test_only_ascii_is_lower_cased(tmp_path):
  accents = tmp_path / "accents.hex"
  accents.write_text("00C9:" + "FF" * 16 + "\n00E9:" + "0F" * 16 + "\n")
  mixed, plain, other = drawn(["AÉ", "aÉ", "aé"], ("ascii", str(accents)), image_size=48)
  np.testing.assert_array_equal(mixed, plain)
  assert np.any(plain != other)


def test_of_several_texts_of_an_example_the_first_is_drawn(font):
  op = builder.get_batched_fn(f"render_unifont(32, font={font!r})")
  several = bytes_column(["a", "b", "c", ""]).reshape(2, 2)
  np.testing.assert_array_equal(op({"texts": several})["image"], op({"texts": bytes_column(["a", "c"])})["image"])
  assert op({"texts": several[:0]})["image"].shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
  "arguments, line",
  [
    ("16", "image_size must be wider than a letter, font_size=16 pixels, got 16"),
    ("32, spacing=-1", "spacing must be a whole number"),
    ("32, resize_method='cubic'", "resize_method must be one of"),
    ("32, wrap='word'", "unexpected keyword argument 'wrap'"),
    ("32, font=['ascii', 'FONT.ttf']", "must be a .hex font"),
    ("32, font='WIDE.hex'", r"U\+0041 is wider than 16 pixels"),
  ],
)
def test_what_cannot_be_trimmed_is_refused(tmp_path, arguments, line):
  (tmp_path / "FONT.ttf").write_bytes(b"hello")
  (tmp_path / "WIDE.hex").write_text("0041:" + "0" * 96 + "\n")
  arguments = arguments.replace("FONT", str(tmp_path / "FONT")).replace("WIDE", str(tmp_path / "WIDE"))
  with pytest.raises(UserError, match=f"pp op render_unifont: .*{line}"):
    builder.steps(f"render_unifont({arguments})")


def test_the_published_font_by_name_is_the_version_that_the_models_have_read(tmp_path, monkeypatch):
  asked = []

  def fetch(place):
    asked.append(place)
    path = tmp_path / place.rpartition("/")[2].removesuffix(".gz")
    path.write_text(str(WITNESS["hex"]))
    return path

  monkeypatch.setattr(fonts.remote, "fetch", fetch)
  image = builder.get_batched_fn("render_unifont(96)")({"texts": bytes_column(WITNESS["texts"].tolist())})["image"]
  np.testing.assert_array_equal(image[..., 0], WITNESS["images0"])
  assert [place.rpartition("/")[2] for place in asked] == ["unifont-9.0.06.hex.gz", "unifont_upper-9.0.06.hex.gz"]
