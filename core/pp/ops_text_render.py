"""pp ops that draw text: an image of it takes the place of tokens (CLIPPO, Tschannen et al. 2023)."""

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from core.errors import UserError
from core.pp import text as text_lib
from core.pp.arguments import Empty, GreyLevel, Size
from core.pp.ops_resize import sides_of
from core.pp.registry import key_op
from core.pp.render import fonts
from core.pp.render.render import render
from core.recipe.types import FilePath

Font = FilePath | tuple[FilePath, ...]
FontSize = Annotated[int, Meta(ge=1, le=1_024)]
NumChars = Annotated[int, Meta(ge=1, le=2**20)]
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
    # Of several texts of an example, some may be padding.
    filled = np.array([bool(text.strip()) for text in decoded]).reshape(examples, len(texts) // max(examples, 1))
    if empty == "refuse" and not filled.any(axis=1).all():
      shown = decoded[int(np.argmin(filled.any(axis=1))) * filled.shape[1]] if decoded else ""
      raise UserError(f"the text is empty: {shown!r}; empty='keep' takes it, input.skip_errors=True leaves it out")
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


@key_op(key="texts", outkey="image")
def render_unifont(
  image_size: Size,
  font_size: FontSize = 16,
  max_chars: NumChars = 768,
  background_brightness: GreyLevel = 127,
  text_brightness: GreyLevel = 0,
  lower: bool = True,
  font: Font = "unifont",
  wrap: Wrap = "word",
  empty: Empty = "refuse",
):
  """Draws text as `render_text` does, under the name, with the arguments and defaults, of the published CLIPPO configs.

  Args:
    image_size: see `render_text`, as all that follow.
    font_size: pixels.
    max_chars: what is longer is cut.
    background_brightness: grey level.
    text_brightness: grey level.
    lower: lower-case first.
    font: "unifont" is fetched; or a file.
    wrap: "word" or "char".
    empty: "refuse" or "keep".
  """
  return render_text(
    image_size,
    font,
    font_size,
    lower,
    text_brightness,
    background_brightness,
    wrap,
    max_chars=max_chars,
    empty=empty,
  )
