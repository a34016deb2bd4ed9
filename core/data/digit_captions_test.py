"""Digits with captions: what is held out, that captions tell the truth, that the shipped tokenizers know every word."""

import re

import numpy as np
import pytest

from core import data_files
from core.data.source import open_source
from core.data.sources import digit_captions, digit_captions_vocabulary, digits
from core.errors import UserError
from core.pp import tokenizers
from core.recipe import sources
from core.recipe.parse import parse

SPLITS = ("train", "test", "test_templates", "test_combinations")


def load(split, **options):
  given = dict(source="digit_captions", split=split, **options)
  return open_source(parse(sources.Source, given), "config.input.data")


def texts(split):
  return [caption.decode() for caption in load(split).arrays["captions"].ravel()]


def pairs(split, **options):
  label = load(split, digits=2, **options).arrays["label"] - 10
  return set(zip((label // 10).tolist(), (label % 10).tolist()))


def refused(line, **options):
  with pytest.raises(UserError, match=line) as error:
    load(**options)
  assert "\n" not in str(error.value)


def test_columns_and_sizes():
  for split, size in zip(SPLITS, (12_000, 1_440, 1_440, 720)):
    source = load(split)
    assert len(source) == size
    assert {key: (x.shape[1:], x.dtype) for key, x in source.arrays.items()} == {
      "image": ((16, 16, 3), np.uint8),
      "captions": ((4,), object),
      "caption": ((), object),
      "label": ((), np.int64),
      "id": ((), np.int64),
    }
  assert len(load("train", examples=300, digits=1)) == 150
  assert len(load("train[:10%]")) == 1_200
  assert load("test", digits=2).describe(3) == "test image 7 of digit_captions"


def test_classes_are_balanced_and_labels_are_their_names():
  single, double = load("test", digits=1), load("test", digits=2)
  assert np.bincount(single.arrays["label"]).tolist() == [72] * 10
  assert set(np.bincount(double.arrays["label"])[10:].tolist()) == {0, 9}
  for source in (single, double):
    for caption, label in zip(source.arrays["caption"], source.arrays["label"]):
      named = re.findall("|".join(digit_captions.DIGITS), caption.decode())
      assert " and ".join(named) == source.classes[label]


def test_pairs_are_held_out_in_either_order():
  held_out = {pair for a, b in sources.HELD_OUT for pair in ((a, b), (b, a))}
  assert pairs("test_combinations") == held_out
  assert pairs("train") == pairs("test") == {(a, b) for a in range(10) for b in range(10)} - held_out
  assert {digit for pair in held_out for digit in pair} == set(range(10))
  assert pairs("test_combinations", held_out=[(3, 3), (1, 2)]) == {(3, 3), (1, 2), (2, 1)}
  assert len(pairs("train", held_out=())) == 100


def test_templates_are_held_out_and_their_words_are_known():
  known, new = (digit_captions.TEMPLATES, digit_captions.PAIR_TEMPLATES), digit_captions.HELD_OUT_TEMPLATES
  assert not set(known[0] + known[1]) & set(new + digit_captions.HELD_OUT_PAIR_TEMPLATES)
  train, held_out = texts("train"), texts("test_templates")
  assert not set(train) & set(held_out)
  assert {word for text in held_out for word in text.split()} <= {word for text in train for word in text.split()}
  np.testing.assert_array_equal(load("test").arrays["image"], load("test_templates").arrays["image"])


def test_an_image_has_captions_of_different_templates():
  for split in SPLITS:
    captions = load(split).arrays["captions"]
    assert np.mean([len(set(some)) for some in captions]) > 3.9  # "three above three" may be said twice.
    if split != "test_templates":
      assert captions[:, 0].tolist() == load(split).arrays["caption"].tolist()


@pytest.mark.parametrize("split", ["train", "test", "test_combinations"])
def test_captions_tell_the_truth_about_every_pixel(split):
  source, handwriting = load(split), digits.load(split="train" if split == "train" else "test").arrays
  drawings = {x.tobytes(): y for x, y in zip(handwriting["image"], handwriting["label"])}
  cells = {"top left": (0, 0), "top right": (0, 8), "bottom left": (8, 0), "bottom right": (8, 8)}
  whites = 0
  for image, caption in zip(source.arrays["image"], source.arrays["caption"]):
    text, found = caption.decode(), {}
    for place, (top, left) in cells.items():
      cell = image[top : top + 8, left : left + 8].astype(float)
      if cell.any():
        brightest = cell.reshape(64, 3)[cell.sum(axis=2).argmax()]
        colour = min(digit_captions.COLOURS, key=lambda name: abs(digit_captions.COLOURS[name] - brightest).sum())
        found[place] = colour
        if colour == "white":
          digit = digit_captions.DIGITS[drawings[cell[..., :1].astype(np.uint8).tobytes()]]
          assert f"white {digit}" in text
          whites += 1
    places = list(found)  # From left to right, from top to bottom.
    if len(places) == 1:
      assert text.startswith(f"a {found[places[0]]} ")
      assert text.endswith(f" at the {places[0]}")
    else:
      relation = "to the left of" if places[0].split()[0] == places[1].split()[0] else "above"
      assert re.fullmatch(rf"a {found[places[0]]} \w+ {relation} a {found[places[1]]} \w+", text)
  assert whites > len(source) / 6


def test_the_data_are_the_same_everywhere():
  arrays = load("train[:1000]").arrays
  assert int(arrays["image"].astype(np.int64).sum()) == 14_030_502
  assert arrays["captions"][7].tolist() == [
    b"a green two above a white two",
    b"a white two below a green two",
    b"two below a digit",
    b"two above two",
  ]


def test_the_tokenizers_that_ship_know_every_word_as_one_piece():
  captions = sorted({text for split in SPLITS for text in texts(split)})
  words = [len(caption.split()) for caption in captions]
  assert max(words) <= 14  # With the end of sentence or [CLS], 16 tokens hold them.
  for name in ("digit_captions", "digit_words"):
    ids, lengths = tokenizers.load(name).encode([caption.encode() for caption in captions])
    assert lengths.tolist() == words
    assert tokenizers.load(name).special["unk"] not in ids
    spelled, _ = tokenizers.load(name).encode([b"quick brown fox 42"])
    assert tokenizers.load(name).special["unk"] not in spelled


def test_the_tokenizers_that_ship_are_those_of_the_program():
  folder = data_files.find("core/pp/vocabularies")
  assert (folder / "digit_words.txt").read_text() == digit_captions_vocabulary.wordpiece_vocabulary()
  assert (folder / "digit_captions.model").read_bytes() == digit_captions_vocabulary.sentencepiece_model()


def test_bad_options_are_refused():
  refused(r"there is no split 'tets' \(did you mean 'test'\?\)", split="tets")
  refused(r"config.digits must be one of 1, 2 or a list of one of 1, 2, got 3", split="test", digits=3)
  refused(r"examples must be a whole number in \[2, 1000000\], got 0", split="train", examples=0)
  refused(r"held_out\[0\]\[1\] must be a whole number in \[0, 9\], got 10", split="train", held_out=[(3, 10)])
  refused("split: 'test_combinations' holds no examples", split="test_combinations", digits=1)
  refused("held_out is empty", split="test_combinations", held_out=())
  refused("leaves no pair", split="train", held_out=[(a, b) for a in range(10) for b in range(10)])
