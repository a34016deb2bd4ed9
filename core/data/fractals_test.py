"""Fractals made from a formula: the right points, the same images everywhere, classes that can be told apart."""

import re

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from core.data import pipeline
from core.data.source import open_source
from core.data.sources import fractals
from core.errors import UserError
from core.recipe import sources
from core.recipe.input import Input
from core.recipe.parse import parse

MEANS = (103.133, 104.223, 105.361)  # Of red, green and blue in DATA.
DATA = dict(source="fractals", classes=6, per_class=30, size=16)


def opened(**data):
  return open_source(parse(sources.Source, DATA | data), "config.input.data")


def test_the_chaos_game_draws_the_sierpinski_triangle():
  """Three maps that halve: of the 4^k squares of a grid, the attractor meets exactly 3^k: of dimension log2 3."""
  shift = [[0, 0.5, 0], [0, 0, 0.5]]
  coefficients = np.array([[0.5] * 3, [0] * 3, [0] * 3, [0.5] * 3, *shift], np.float32)[:, None]
  system = fractals._systems(coefficients)
  np.testing.assert_allclose(system.cumulative[0], np.arange(1, 4) / 3, rtol=1e-6)
  x, y = fractals.walk(system, (1,), np.arange(1), points=40_000)
  for k in range(1, 6):
    occupied = (
      fractals.histogram(x, y, 2**k)[0] > 3
    )  # The walks start off the triangle, and their first points lie beside it.
    assert occupied.sum() == 3**k
    # Pascal's triangle modulo 2: the square (row, column) is met where the two share no bit.
    row, column = np.indices(occupied.shape)
    np.testing.assert_array_equal(occupied, row & column == 0)


def test_maps_contract_and_their_odds_are_their_areas():
  system = fractals.class_system(0, 3)
  a, b, c, d = system.coefficients[:4, 0]
  for matrix in np.stack([a, b, c, d], axis=-1).reshape(-1, 2, 2):
    assert np.linalg.norm(matrix, 2) <= 0.98 + 1e-5
  odds = np.diff(system.cumulative[0], prepend=0)
  area = np.abs(np.linalg.det(np.stack([a, b, c, d], axis=-1).reshape(-1, 2, 2)))
  np.testing.assert_allclose(odds, area / area.sum(), atol=2e-3)


@pytest.mark.parametrize("label", range(8))
def test_a_class_fills_enough_of_its_image(label):
  points = fractals.walk(fractals.class_system(1, label), (5,), np.arange(1), points=16_384)
  filled = (fractals.histogram(*fractals._fitted(*points), 64) > 0).mean()
  assert 0.2 <= filled <= 0.9


def test_the_images_never_change():
  train = opened(split="train")
  image = train.arrays["image"]
  assert image.shape == (180, 16, 16, 3)
  assert image.dtype == np.uint8
  assert train.arrays["label"].tolist() == list(range(6)) * 30
  # Not a digest: rounding may differ by one level between processors.
  np.testing.assert_allclose(image.mean(axis=(0, 1, 2)), MEANS, atol=0.05)
  assert len({x.tobytes() for x in image}) == 180
  assert not np.array_equal(image, opened(split="train", seed=1).arrays["image"])
  assert train.describe(7) == "train image 1 of fractal class 1"


def test_a_class_is_the_same_however_many_there_are():
  few = opened(split="train", classes=2, per_class=5).arrays["image"].reshape(5, 2, 16, 16, 3)
  many = opened(split="train").arrays["image"].reshape(30, 6, 16, 16, 3)
  np.testing.assert_array_equal(few, many[:5, :2])


def test_splits_share_no_image_and_every_part_has_every_class():
  train, test = opened(split="train"), opened(split="test")
  assert len(test) == 6 * 3
  assert not {x.tobytes() for x in train.arrays["image"]} & {x.tobytes() for x in test.arrays["image"]}
  assert np.bincount(opened(split="train[:10%]").arrays["label"]).tolist() == [3] * 6


def test_the_classes_can_be_told_apart():
  """By the nearest training image, compared by shape alone: what scikit-learn's classifier finds."""
  data = dict(classes=10, per_class=150, size=16)

  def shapes(split):
    source = opened(split=split, **data)
    grey = source.arrays["image"].astype(np.float32).mean(axis=-1)
    ground = np.median(np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], axis=1), axis=1)
    shape = np.abs(grey - ground[:, None, None]).reshape(len(grey), -1)
    return shape / np.linalg.norm(shape, axis=1, keepdims=True), source.arrays["label"]

  accuracy = KNeighborsClassifier(5).fit(*shapes("train")).score(*shapes("test"))
  assert accuracy > 0.4  # Chance is 0.1; the images are mirrored, turned, moved and scaled.


def test_fractals_take_the_path_without_tensorflow():
  config = dict(data=DATA | dict(split="train"), batch_size=8, pp="value_range(-1,1)|onehot(6,key='label')")
  batch = next(pipeline.train_batches(parse(Input, config), seed=0, start_step=0))
  assert batch["image"].shape == (8, 16, 16, 3)
  assert batch["label"].sum() == 8


@pytest.mark.parametrize(
  "data, line",
  [
    (dict(classes=0), "config.classes must be a whole number in [1, 1000000], got 0"),
    (dict(per_class=2.5), "per_class must be a whole number"),
    (dict(size=4), "size must be a whole number in [8, 512], got 4"),
    (dict(classes=10**6, per_class=10**6, size=32), "make 2861022 GiB of images"),
    (dict(split="val"), "there is no split 'val'"),
    (dict(clases=3), "did you mean 'classes'"),
  ],
)
def test_bad_input_is_refused(data, line):
  with pytest.raises(UserError, match=re.escape(line)):
    opened(**dict(split="train") | data)
