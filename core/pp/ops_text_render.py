"""pp ops that draw text: an image of it takes the place of tokens (CLIPPO, Tschannen et al. 2023)."""

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from core.errors import UserError
from core.pp import text as text_lib
from core.pp.arguments import Empty, GreyLevel, Method, Size
from core.pp.ops_resize import sides_of
from core.pp.registry import key_op
from core.pp.render import fonts
from core.pp.render.render import render, render_trimmed
from core.recipe.types import FilePath

Font = FilePath | tuple[FilePath, ...]
FontSize = Annotated[int, Meta(ge=1, le=1_024)]
NumChars = Annotated[int, Meta(ge=1, le=2**20)]
UpToChars = Annotated[int, Meta(ge=0, le=2**20)] | None
Columns = Annotated[int, Meta(ge=0, le=1_024)]
Wrap = Literal["word", "char"]


@key_op(key="text", outkey="labels")
def render_text(
  image_size: Size = 224,
  font: Font = "ascii",
  font_size: FontSize = 16,
  lower: bool = False,
  text_brightness: GreyLevel = 0,
  background_brightness: GreyLevel = 127,
  wrap: Wrap = "word",
  unknown: Literal["box", "skip"] = "box",
  max_chars: NumChars | None = None,
  channels: Literal[1, 3] = 3,
  empty: Empty = "refuse",
):
  """Draws text into a uint8 image, in lines from the top left; what has no room is cut.

  The defaults draw black on middle grey, which is 0 after `value_range(-1, 1)`, as published CLIPPO models read it.

  Args:
    image_size: pixels, an integer or (height, width).
    font: "ascii" (needs no file), "unifont" (fetched), a .hex or TrueType file, or a list of them; see
      `core.pp.render.fonts`.
    font_size: pixels; 16 is what .hex fonts are drawn for.
    lower: lower-case first, all scripts.
    text_brightness: grey level of the text, 0 to 255.
    background_brightness: grey level of the rest.
    wrap: "word" breaks lines between words, "char" wherever they are full. Newlines end a line in either case.
    unknown: characters that no font has are drawn as a "box", or "skip"ped.
    max_chars: what is longer is cut before it is drawn; None: twice as many as the image holds.
    channels: 3, or 1.
    empty: what becomes of a text without a letter: "refuse" it (`input.skip_errors=True` counts and skips such
      examples), or "keep" it, an image of nothing.
  """
  size = sides_of(image_size)
  opened = fonts.load(font, font_size, skip_unknown=unknown == "skip")
  if opened.line_height > size[0]:
    raise UserError(f"a line of text is {opened.line_height} pixels high; the image, image_size, {size[0]}")
  if max_chars is None:
    # Letters are seldom narrower than a quarter of their height.
    max_chars = 2 * (size[0] // opened.line_height) * max(1, size[1] * 4 // font_size)

  def images(texts, examples):
    decoded = text_lib.decoded(texts)
    _require_letters(decoded, examples, empty)
    return render(
      [text.lower() for text in decoded] if lower else decoded,
      opened,
      size,
      ink=text_brightness,
      background=background_brightness,
      words=wrap == "word",
      max_chars=max_chars,
      channels=channels,
    )

  return text_lib.op_functions_by_example(images, np.uint8, (*size, channels))


def _require_letters(texts: list[str], examples: int, empty: str) -> None:
  """Refuses an example of whose texts none has a letter, where they are to be refused; some may be padding."""
  filled = np.array([bool(text.strip()) for text in texts]).reshape(examples, len(texts) // max(examples, 1))
  if empty == "refuse" and not filled.any(axis=1).all():
    shown = texts[int(np.argmin(filled.any(axis=1))) * filled.shape[1]] if texts else ""
    raise UserError(f"the text is empty: {shown!r}; empty='keep' takes it, input.skip_errors=True leaves it out")


@key_op(key="texts", outkey="image")
def render_unifont(
  image_size: Size,
  font_size: FontSize = 16,
  max_chars: UpToChars = 768,
  background_brightness: GreyLevel = 127,
  text_brightness: GreyLevel = 0,
  lower: bool = True,
  monospace: bool = False,
  spacing: Columns = 1,
  min_width: Columns = 4,
  resize_method: Method = "area",
  font: Font = "unifont-9.0.06",
  empty: Empty = "refuse",
):
  """Draws text into a uint8 image exactly as the published CLIPPO models have read it; of several texts the first.

  Letters are trimmed one by one, rows break at any letter, line ends are letters, and the last row is cut at the
  image's end: see `core.pp.render.trimmed`. `render_text` is the form for models of one's own, which breaks lines
  between words and draws any font.

  Args:
    image_size: pixels, an integer or (height, width); the width greater than font_size.
    font_size: pixels; other sizes than 16, that of the font, need TensorFlow.
    max_chars: what is longer is cut before it is drawn; 0 or None cuts nothing.
    background_brightness: grey level of what is no text, 0 to 255.
    text_brightness: grey level of the text.
    lower: lower-case first, A to Z alone.
    monospace: keep the whole square of each letter.
    spacing: pixels left to a letter beside its ink.
    min_width: pixels that a letter has at least, a space say.
    resize_method: for another font_size, a method of `resize`.
    font: a name or .hex file, or a list of them; see `core.pp.render.fonts`.
    empty: what becomes of a text without a letter: "refuse" it or "keep" it, an image of nothing.
  """
  size = sides_of(image_size)
  if size[1] <= font_size:
    raise UserError(f"image_size must be wider than a letter, font_size={font_size} pixels, got {size[1]}")
  opened = fonts.load_trimmed(
    font,
    font_size,
    ink=text_brightness,
    background=background_brightness,
    monospace=monospace,
    spacing=spacing,
    min_width=min_width,
    resize_method=resize_method,
  )

  def images(texts, examples):
    decoded = text_lib.decoded([text.lower() for text in texts] if lower else texts)  # Of bytes: ASCII alone.
    _require_letters(decoded, examples, empty)
    return render_trimmed(decoded, opened, size, background=background_brightness, max_chars=max_chars or None)

  return text_lib.of_first(text_lib.op_functions_by_example(images, np.uint8, (*size, 3)))
