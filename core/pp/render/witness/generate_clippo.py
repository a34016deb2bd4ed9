"""Makes clippo.npz: texts as the published code of CLIPPO draws them, big_vision's `render_unifont`.

    python core/pp/render/witness/generate_clippo.py BIG_VISION_CHECKOUT core/pp/render/witness/clippo.npz

TensorFlow 2.21.0; the file is that of big_vision's commit fd2d3bd. The code reads its two font files from the current
folder: here the shipped font, with glyphs of both widths, a control's and one beyond the first plane. The npz holds
`hex`, their lines, and of each case its arguments as JSON, its texts and the images.
"""

import functools
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import tensorflow as tf

TEXTS = [
  "A photo of the digits three and seven, \u56d7\u56d7 beside an \u00c9 and more: 'quoted' {[(@)]} & so on.",
  "Line one.\nLine two;\ttabs \u7a7a  and\u3000 an absent one",
  "W" * 40 + "i" * 90,
  "i.l" * 200,
  "\U0001f600 a \U0001f600",
  " a",
]
CASES = [
  dict(image_size=96),
  dict(image_size=100, spacing=2, min_width=6),
  dict(image_size=40, spacing=0, min_width=0),
  dict(image_size=64, monospace=True),
  dict(image_size=64, lower=False, max_chars=20, background_brightness=255, text_brightness=10),
  dict(image_size=20),
  dict(image_size=72, font_size=8),
  dict(image_size=96, font_size=24, resize_method="bilinear"),
]
# A wide frame, a control's picture, and a face in the second plane.
FRAME = "FFFF" + "8001" * 6 + "8181" * 2 + "8001" * 6 + "FFFF"
CONTROL = "AAAA" + "00018000" * 7 + "5555"
FACE = "07E0" + "1818" * 6 + "2664" * 2 + "1818" * 6 + "07E0"


def main(checkout, output):
  sys.path.insert(0, checkout)
  from big_vision.pp.proj.clippo import pp_ops

  ascii_hex = pathlib.Path(__file__).parents[2].joinpath("fonts/ascii.hex").read_text()
  plane = ascii_hex + f"000A:{CONTROL}\n56D7:{FRAME}\n"
  upper = f"01F600:{FACE}\n"
  here = tempfile.mkdtemp()
  os.chdir(here)
  folder = pathlib.Path("big_vision/pp/proj/clippo")
  folder.mkdir(parents=True)
  (folder / "unifont-9.0.06.hex").write_text(plane)
  (folder / "unifont_upper-9.0.06.hex").write_text(upper)
  found = {}
  for i, case in enumerate(CASES):
    draw = tf.function(functools.partial(pp_ops.get_pp_render_text(**case)))
    found[f"images{i}"] = np.stack([draw(tf.constant(text.encode())).numpy()[..., 0] for text in TEXTS])
  arrays = dict(texts=np.array(TEXTS), cases=np.array(list(map(json.dumps, CASES))), hex=np.array(plane + upper))
  np.savez_compressed(output, **arrays, **found)


if __name__ == "__main__":
  main(sys.argv[1], pathlib.Path(sys.argv[2]).resolve())
