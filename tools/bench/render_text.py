"""Images/s of text rendered at 224 px, by .hex and by TrueType fonts, against Pillow's own drawing, in one run.

    ./bazelw run //tools/bench:render_text -- [--hex=unifont.hex] [--truetype=FONT.ttf]

All on one core, but for `tf_data`, which uses what tf.data takes. Pillow draws the same lines with the same font into a
new image, line by line; it does not look for where lines break.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from core import command
from core.data.columns import bytes_column
from core.import_tensorflow import import_tensorflow
from core.pp import builder
from core.pp.render import fonts
from core.pp.render.render import render
from core.pp.render.truetype_font import TrueTypeFont

SIZE, BATCH = 224, 64
WORDS = "a photo of the two small dogs that play near old red houses by water under trees on sunny days"
LENGTHS = {"caption": 10, "page": 120}  # Words a text: an alt-text, and more than an image holds.


_COMMAND = command.Command("render_text [options]", about=__doc__)
_COMMAND.text("hex", "a .hex font, or a name", default="ascii", shown="FONT")
_COMMAND.text("truetype", "a font that FreeType reads; Pillow's own by default", shown="FONT")
_COMMAND.whole("rounds", "how often each is measured", default=7)
_COMMAND.whole("batches", "a round, of 64 texts", default=10)


def main(argv: Sequence[str]) -> int:
  """Prints the rates; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  from PIL import ImageFont

  truetype = flags.truetype or io.BytesIO(ImageFont.load_default(16).font_bytes)
  pillow = ImageFont.truetype(truetype, 16, layout_engine=ImageFont.Layout.BASIC)
  result = {}
  for kind, words in LENGTHS.items():
    texts = texts_of(words, BATCH)
    variants = {
      "hex": drawn(texts, fonts.load(flags.hex, 16)),
      "pillow": drawn_by_pillow(texts, pillow),
      "tf_data": through_tf_data(texts, flags.hex),
    }
    if flags.truetype:
      variants["truetype"] = drawn(texts, fonts.load(flags.truetype, 16))
    else:
      variants["truetype"] = drawn(texts, fonts.Font([_own_truetype()]))
    rates = measure(variants, flags.rounds, flags.batches)
    medians = {name: round(statistics.median(each)) for name, each in rates.items()}
    to_pillow = statistics.median(a / b for a, b in zip(rates["truetype"], rates["pillow"]))
    result[kind] = {"images_per_second": medians, "truetype_to_pillow": round(to_pillow, 2)}
  print(json.dumps({**result, "size": SIZE, "batch": BATCH, "rounds": flags.rounds}, indent=2))
  return 0


def texts_of(words: int, count: int) -> list[str]:
  """Returns as many texts of random words."""
  rng = np.random.default_rng(0)
  return [" ".join(rng.choice(WORDS.split(), words)) for _ in range(count)]


def _own_truetype() -> TrueTypeFont:
  """Reads Pillow's own font, by way of a file."""
  from PIL import ImageFont

  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "font.ttf"
    path.write_bytes(ImageFont.load_default(16).font_bytes)
    return TrueTypeFont(path, 16)


def drawn(texts: list[str], font: fonts.Font) -> Callable[[], None]:
  """Returns what draws all texts in one batch."""
  return lambda: render(texts, font, (SIZE, SIZE))


def drawn_by_pillow(texts: list[str], font) -> Callable[[], None]:
  """Returns what draws each text by itself, broken into lines beforehand."""
  import textwrap

  from PIL import Image, ImageDraw

  ascent, descent = font.getmetrics()
  lines = [textwrap.wrap(text, 28)[: SIZE // (ascent + descent)] for text in texts]

  def draw() -> None:
    for each in lines:
      image = Image.new("L", (SIZE, SIZE), 127)
      canvas = ImageDraw.Draw(image)
      for number, line in enumerate(each):
        canvas.text((0, number * (ascent + descent) + ascent), line, font=font, fill=0, anchor="ls")
      np.asarray(image.convert("RGB"))

  return draw


def through_tf_data(texts: list[str], font: str) -> Callable[[], None]:
  """Returns what takes a batch of the op in `tf.data`, which draws an example at a time."""
  tf = import_tensorflow()
  one = builder.get_preprocess_fn(f"render_text({SIZE}, font={font!r})|keep('labels')")
  texts = tf.data.Dataset.from_tensor_slices({"text": bytes_column(texts)}).repeat()
  batches = iter(texts.map(one, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH))
  return lambda: next(batches)


def measure(variants: dict[str, Callable[[], None]], rounds: int, batches: int) -> dict[str, list[float]]:
  """Returns the images/s of each variant in every round; the variants take turns."""
  for run in variants.values():
    run()
  rates = {name: [] for name in variants}
  for _ in range(rounds):
    for name, run in variants.items():
      began = time.perf_counter()
      for _ in range(batches):
        run()
      rates[name].append(batches * BATCH / (time.perf_counter() - began))
  return rates


if __name__ == "__main__":
  command.run(main)
