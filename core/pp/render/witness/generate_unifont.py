"""Makes unifont.npz: text in many scripts, drawn by Pillow and FreeType from GNU Unifont's OpenType form.

    python core/pp/render/witness/generate_unifont.py UNIFONT.otf UNIFONT.hex core/pp/render/witness/unifont.npz

Both files are of GNU Unifont 15.0.01 (Debian's packages fonts-unifont and unifont), Pillow 13.0.0. The file holds
`texts`, one line each, `images`, where there is ink, and `hex`, the lines of UNIFONT.hex for the characters used, 83
glyphs (GNU Unifont, SIL Open Font License 1.1).
"""

import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, BASELINE = 256, 14
TEXTS = [
  "Hello, World! 0123456789",
  "ça va? Ærø, naïve, Łódź",
  "Привет, мир — Ёж",
  "世界 こんにちは 한국어",
  "नमस्ते שלום مرحبا ไทยที่นี่",
  "x\u0301 ☃ ⚙ “quoted” … €",
]


def main(otf, hex_file, output):
  font = ImageFont.truetype(otf, 16, layout_engine=ImageFont.Layout.BASIC)
  images = []
  for text in TEXTS:
    image = Image.new("L", (WIDTH, 16))
    ImageDraw.Draw(image).text((0, BASELINE), text, font=font, fill=255, anchor="ls")
    images.append(np.asarray(image) > 127)
  used = {f"{ord(character):04X}" for character in "".join(TEXTS)}
  with open(hex_file) as lines:
    kept = "".join(line for line in lines if line.partition(":")[0] in used)
  np.savez_compressed(output, texts=np.array(TEXTS), images=np.stack(images), hex=np.array(kept))
  print(len(kept.splitlines()), "glyphs")


if __name__ == "__main__":
  main(*sys.argv[1:])
