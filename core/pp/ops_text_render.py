"""pp ops that draw text: an image of it takes the place of tokens (CLIPPO, Tschannen et al. 2023)."""

import numpy as np

from core.errors import UserError, nearest
from core.pp import text as text_lib
from core.pp.registry import OpFunctions, key_op
from core.pp.render import fonts
from core.pp.render.render import render

_WRAP = ("word", "char")
_UNKNOWN = ("box", "skip")
_EMPTY = ("refuse", "keep")


@key_op(key="text", outkey="labels")
def render_text(
  image_size=224,
  font="ascii",
  font_size=16,
  lower=False,
  text_brightness=0,
  background_brightness=127,
  wrap="word",
  unknown="box",
  max_chars=None,
  channels=3,
  empty="refuse",
):
  """Draws text into a uint8 image, in lines from the top left; what has no room is cut.

  The defaults draw black on middle grey, which is 0 after `value_range(-1, 1)`, as published CLIPPO models read it.

  Args:
    image_size: in pixels, an integer or (height, width).
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
  size = _size(image_size)
  _check("wrap", wrap, _WRAP)
  _check("unknown", unknown, _UNKNOWN)
  _check("empty", empty, _EMPTY)
  if channels not in (1, 3):
    raise UserError(f"channels must be 1 or 3, got {channels!r}")
  for name, level in (("text_brightness", text_brightness), ("background_brightness", background_brightness)):
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= 255:
      raise UserError(f"{name} is a grey level, a whole number from 0 to 255, got {level!r}")
  for name, number in (("font_size", font_size), ("max_chars", max_chars)):
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
      raise UserError(f"{name} is a whole number from 1 on, got {number!r}")
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

  functions = lambda examples: text_lib.op_functions(lambda texts: images(texts, examples), np.uint8, (*size, channels))
  return OpFunctions(functions(1).per_example, lambda values: functions(len(values)).batched(values))


@key_op(key="texts", outkey="image")
def render_unifont(
  image_size,
  font_size=16,
  max_chars=768,
  background_brightness=127,
  text_brightness=0,
  lower=True,
  font="unifont",
  wrap="word",
  empty="refuse",
):
  """`render_text` under the name, with the arguments and defaults, of the published CLIPPO configs.

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


def _size(size: object) -> tuple[int, int]:
  pair = (size, size) if isinstance(size, int) else size
  fine = isinstance(pair, tuple | list) and len(pair) == 2
  if not fine or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in pair):
    raise UserError(f"image_size is in pixels, an integer above zero or (height, width), got {size!r}")
  return tuple(pair)


def _check(name: str, value: object, known: tuple[str, ...]) -> None:
  if value not in known:
    raise UserError(f"{name} cannot be {value!r}{nearest(str(value), known)}")
