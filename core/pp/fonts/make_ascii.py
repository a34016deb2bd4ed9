"""Makes ascii.hex, the small bitmap font that ships with this repository: the printable characters of ASCII, 8x16.

    python core/pp/fonts/make_ascii.py core/pp/fonts/ascii.hex

The shapes are those of Aileron Regular (Sora Sagano; in the public domain by CC0), a part of which is Pillow's default
font, squeezed to cells of a fixed width; a few that do not survive that are drawn below. Made with Pillow 13.0.0.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROWS, COLUMNS = 16, 8
SCALE = 16  # Drawn this much larger, then averaged.
EM, BASELINE, WIDEST, THRESHOLD = 14, 12.6, 7, 0.45

# Row of the first line, and the lines.
BY_HAND = {
  "*": (3, ["...#....", ".#.#.#..", "..###...", "..###...", ".#.#.#..", "...#...."]),
  "+": (6, ["...#....", "...#....", ".#####..", "...#....", "...#...."]),
  "~": (7, [".##..#..", "#..##..."]),
  "`": (2, ["..#.....", "...#....", "....#..."]),
  "i": (
    3,
    ["...#....", "........", "..##....", "...#....", "...#....", "...#....", "...#....", "...#....", "..###..."],
  ),
  "j": (3, ["....#...", "........", "...##...", *["....#..."] * 7, ".#..#...", "..##...."]),
  "l": (2, ["..##....", *["...#...."] * 9, "..###..."]),
  "I": (3, [".#####..", *["...#...."] * 8, ".#####.."]),
  ".": (11, ["...##...", "...##..."]),
  ",": (11, ["...##...", "...##...", "....#...", "...#...."]),
  "w": (5, ["#.....#.", "#.....#.", "#..#..#.", "#..#..#.", "#..#..#.", "#.#.#.#.", ".#...#..", ".#...#.."]),
  "W": (3, [*["#.....#."] * 4, *["#..#..#."] * 3, "#.#.#.#.", ".#...#..", ".#...#.."]),
}


def cell(character):
  """Returns the glyph's pixels, bool [16, 8]."""
  pixels = np.zeros((ROWS, COLUMNS), bool)
  if character in BY_HAND:
    top, lines = BY_HAND[character]
    pixels[top : top + len(lines)] = [[sign == "#" for sign in line] for line in lines]
    return pixels
  font = ImageFont.load_default(EM * SCALE)
  large = Image.new("L", (int(font.getlength(character)) + 4 * SCALE, ROWS * SCALE))
  ImageDraw.Draw(large).text((2 * SCALE, BASELINE * SCALE), character, font=font, fill=255, anchor="ls")
  columns = np.flatnonzero(np.asarray(large).max(axis=0))
  if columns.size:
    large = large.crop((columns[0], 0, columns[-1] + 1, large.height))
    width = min(max(round(large.width / SCALE), 1), WIDEST)
    left = (COLUMNS - width) // 2
    small = np.asarray(large.resize((width, ROWS), Image.Resampling.BOX))
    pixels[:, left : left + width] = small > THRESHOLD * 255
  return pixels


def main(path):
  lines = [f"{code:04X}:{np.packbits(cell(chr(code))).tobytes().hex().upper()}" for code in range(0x20, 0x7F)]
  path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
  main(Path(sys.argv[1]))
