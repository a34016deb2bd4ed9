"""Pictures of handwritten digits with captions: image and text to train on where nothing is prepared.

A picture is of one or two of scikit-learn's digits (`core.data.sources.digits`), each in a colour and in a quarter of a
black square; its captions come from several templates, some of which tell all and some only the digits:

    a red seven at the top left                     the digits three and seven
    the digit seven                                 a blue three to the left of a red seven

Held out from training are handwritings (all tests show other images), pairs of digits (`test_combinations`), and
templates (`test_templates`, of known words). All choices are `core.data.order.hash64` of the split and the example.

`CLASS_NAMES` and the two lists of prompts are for zero-shot classification by `label`.
"""

import functools

import numpy as np
from jaxtyping import Int, UInt8

from core.data import split as splits
from core.data.columns import Columns, bytes_column, describer, select
from core.data.order import hash64, permutation
from core.data.sources import digits as digits_lib
from core.errors import UserError
from core.recipe import sources

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASS_NAMES = (*DIGITS, *(f"{first} and {second}" for first in DIGITS for second in DIGITS))
DIGIT_PROMPTS = ("a photo of the digit {}", "the digit {}", "a handwritten {}")
PAIR_PROMPTS = ("a photo of the digits {}", "the digits {}")

COLOURS = {
  "red": (255, 50, 50),
  "green": (50, 220, 50),
  "blue": (80, 100, 255),
  "yellow": (255, 230, 0),
  "purple": (190, 60, 220),
  "white": (255, 255, 255),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")

# The last two of each tell all there is to tell, and every image has both: where captions name the digits alone, hardly
# two images of a batch differ in nothing but place or relation, and a model does not learn them.
TEMPLATES = (
  "a photo of the digit {digit}",
  "the digit {digit}",
  "a handwritten {digit}",
  "{digit} written in {colour}",
  "the digit {digit} at the {place}",
  "a handwritten digit at the {place}",
  "{digit} written in {colour} at the {place}",
  "a {colour} {digit} at the {place}",
)
PAIR_TEMPLATES = (
  "a photo of the digits {first} and {second}",
  "the digits {first} and {second}",
  "{first} {relation} {second}",
  "{second} {reverse} {first}",
  "{first} {relation} a digit",
  "{second} {reverse} a digit",
  "a {colour} {first} and a {other} {second}",
  "a {other} {second} {reverse} a {colour} {first}",
  "a {colour} {first} {relation} a {other} {second}",
)
HELD_OUT_TEMPLATES = (
  "a photo of a handwritten {digit}",
  "the digit {digit} written in {colour}",
  "a photo of the digit {digit} at the {place}",
  "a photo of a {colour} {digit} at the {place}",
)
HELD_OUT_PAIR_TEMPLATES = (
  "a photo of {first} and {second}",
  "a handwritten {first} {relation} a handwritten {second}",
  "a photo of {second} {reverse} {first}",
  "a photo of a {colour} {first} {relation} a {other} {second}",
)

CAPTIONS = 4  # An image.
_CELL = 8  # Pixels of a digit; an image is two by two cells.
_TEST_EXAMPLES = 1_440  # Each of the 360 handwritings of the test twice alone, as many pairs.

# Corners of the cells in order of PLACES; of a pair, those of its two digits: in a row or in a column.
_CORNERS = np.array([(0, 0), (0, _CELL), (_CELL, 0), (_CELL, _CELL)])
_PAIRS_OF_CELLS = np.array([(0, 1), (2, 3), (0, 2), (1, 3)])
_RELATIONS = (("to the left of", "to the right of"),) * 2 + (("above", "below"),) * 2

# The first word of each hash: what it is for. Splits that share theirs show the same images.
_DRAW, _TEMPLATES = 200, 201
_SEEDS = {"train": 0, "test": 1, "test_templates": 1, "test_combinations": 2}


def load(**options) -> Columns:
  """Returns the columns that `read` gives for the arguments of `core.recipe.sources.DigitCaptions`."""
  return read(sources.DigitCaptions(**options), "digit_captions")


def read(data: sources.DigitCaptions, where: str) -> Columns:
  """Returns images with captions, those of one and of two digits in turn.

  `image` uint8 [n, 16, 16, 3]; `captions` text [n, 4], of four templates; `caption` text [n], the one that tells all,
  which is the first of them except in `test_templates`;
  `label` int64 [n], the digit of one, 10 + 10 first + second (from left to right or top to bottom) of two: the index
  in `CLASS_NAMES`; `id` int64 [n].

  Raises:
    UserError: no such split, or arguments that leave nothing to show.
  """
  counts = (data.digits,) if isinstance(data.digits, int) else data.digits
  kept_from_training = frozenset((*data.held_out, *((second, first) for first, second in data.held_out)))
  held = {key: _rows(key, counts, data.examples) for key in _SEEDS}
  pieces = splits.of_source({key: [len(rows)] for key, rows in held.items()}, f"{where}.split")
  parts = pieces(data.split)
  arrays = {}
  for key in {part for part, _, _ in parts}:
    if key == "test_combinations" and not kept_from_training:
      raise UserError(f"{where}.held_out is empty, and test_combinations shows the pairs that are held out")
    columns = _dataset(key, data.examples, kept_from_training)
    arrays[key] = {column: array[held[key]] for column, array in columns.items()}

  def noun(part: str, row: int) -> str:
    return f"{part} image {held[part][row]} of digit_captions"

  found, describe = select(arrays, parts), describer(parts, noun)
  return Columns(f"digit_captions {data.split}", found, describe, classes=CLASS_NAMES, pieces=pieces)


def _rows(split: str, counts: tuple[int, ...], examples: int) -> Int[np.ndarray, "n"]:
  """Returns the rows of a split with that many digits: one digit at even places, two at odd ones, or two only."""
  if split == "test_combinations":
    return np.arange(_TEST_EXAMPLES // 2 if 2 in counts else 0)
  row = np.arange(examples if split == "train" else _TEST_EXAMPLES)
  return row[np.isin(1 + row % 2, counts)]


@functools.lru_cache(maxsize=8)
def _dataset(split: str, examples: int, held_out: frozenset[tuple[int, int]]) -> dict[str, np.ndarray]:
  """Returns all columns of a split."""
  handwriting = digits_lib.load(split="train" if split == "train" else "test").arrays
  size = {"train": examples, "test_combinations": _TEST_EXAMPLES // 2}.get(split, _TEST_EXAMPLES)
  row = np.arange(size)
  paired = np.full(size, True) if split == "test_combinations" else row % 2 == 1
  turn = row if split == "test_combinations" else row // 2  # Counts images of one and of two digits apart.
  wanted = [pair for pair in np.ndindex(10, 10) if (pair in held_out) == (split == "test_combinations")]
  pairs = np.array(wanted)[permutation(len(wanted), _DRAW, _SEEDS[split])]
  first, second = np.where(paired, pairs[turn % len(pairs)].T, turn % 10)
  cells, colour, other, *chosen = _drawn(_SEEDS[split], size)

  image = np.zeros((size, 2 * _CELL, 2 * _CELL, 3), np.uint8)
  place = np.where(paired, _PAIRS_OF_CELLS[cells, 0], cells)
  _paint(image, row, _handwritten(handwriting, first, turn // 10, chosen[0], paired), place, colour)
  (two,) = np.nonzero(paired)
  drawn = _handwritten(handwriting, second, turn // 10, chosen[1], paired)
  _paint(image, two, drawn[two], _PAIRS_OF_CELLS[cells[two], 1], other[two])

  names = list(COLOURS)
  facts = [
    dict(digit=DIGITS[a], first=DIGITS[a], second=DIGITS[b], colour=names[c], other=names[o])
    | dict(place=PLACES[cell], relation=_RELATIONS[cell][0], reverse=_RELATIONS[cell][1])
    for a, b, c, o, cell in zip(first, second, colour, other, cells)
  ]
  lists = (HELD_OUT_TEMPLATES, HELD_OUT_PAIR_TEMPLATES) if split == "test_templates" else (TEMPLATES, PAIR_TEMPLATES)
  others = np.arange(len(lists[0]) - 2)
  order = np.argsort(hash64(_TEMPLATES, _SEEDS[split], row[:, None], others), axis=1)[:, : CAPTIONS - 2]
  chosen = ((lists[int(two)], fact, (-1, -2, *some)) for two, fact, some in zip(paired, facts, order))
  captions = [templates[n].format(**fact) for templates, fact, numbers in chosen for n in numbers]
  whole = [(PAIR_TEMPLATES if two else TEMPLATES)[-1].format(**fact) for two, fact in zip(paired, facts)]
  return {
    "image": image,
    "captions": bytes_column(captions).reshape(size, CAPTIONS),
    "caption": bytes_column(whole),
    "label": np.where(paired, 10 + 10 * first + second, first).astype(np.int64),
    "id": row.astype(np.int64),
  }


def _drawn(seed: int, size: int) -> Int[np.ndarray, "5 n"]:
  """Draws for each image which cells it uses, two colours, and two large numbers to choose handwritings by."""
  bits = hash64(_DRAW, seed, np.arange(5)[:, None], np.arange(size)) >> np.uint64(33)
  return bits.astype(np.int64) % np.array([4, len(COLOURS), len(COLOURS), 2**31, 2**31])[:, None]


def _handwritten(
  source: dict[str, np.ndarray],
  digit: Int[np.ndarray, "n"],
  turn: Int[np.ndarray, "n"],
  drawn: Int[np.ndarray, "n"],
  paired: np.ndarray,
) -> UInt8[np.ndarray, "n 8 8 1"]:
  """Returns a handwriting of each digit: one after the other where it is alone, any where it is paired."""
  found = np.empty((len(digit), _CELL, _CELL, 1), np.uint8)
  for value in range(10):
    (members,) = np.nonzero(source["label"] == value)
    (here,) = np.nonzero(digit == value)
    found[here] = source["image"][members[np.where(paired, drawn, turn)[here] % len(members)]]
  return found


def _paint(
  image: UInt8[np.ndarray, "n 16 16 3"],
  rows: Int[np.ndarray, "m"],
  grey: UInt8[np.ndarray, "m 8 8 1"],
  place: Int[np.ndarray, "m"],
  colour: Int[np.ndarray, "m"],
) -> None:
  """Puts a digit of its colour into a cell of each of some images."""
  tint = np.array(list(COLOURS.values()), np.uint16)[colour][:, None, None]
  drawn = (grey.astype(np.uint16) * tint // 255).astype(np.uint8)
  for cell, (top, left) in enumerate(_CORNERS):
    here = place == cell
    image[rows[here], top : top + _CELL, left : left + _CELL] = drawn[here]
