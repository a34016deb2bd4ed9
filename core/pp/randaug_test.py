"""The operations of RandAugment against PIL, NumPy and TensorFlow's own ops."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from core.pp import builder, randaug
from core.pp.rng import Rng

NAMES = list(randaug.operations_at(10))


def photo(height=40, width=52, seed=0):
  """Smooth colours with noise, each channel with a range of its own."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
  image = (np.asarray(coarse) + rng.integers(-9, 10, (height, width, 3))).clip(0, 255)
  return (image * [0.6, 0.7, 0.4] + [30, 0, 90]).astype(np.uint8)


def applied(name, image, magnitude=10, seed=0):
  fn = randaug.operations_at(magnitude)[name]
  return fn(tf.constant(image), Rng(tf.constant(seed, tf.int64))).numpy()


def moved(image, matrix):
  """PIL's affine map; its coordinates are of pixel corners, ours of pixel centres."""
  a, b, c, d, e, f = matrix
  corners = (a, b, c + 0.5 - 0.5 * (a + b), d, e, f + 0.5 - 0.5 * (d + e))
  size = (image.shape[1], image.shape[0])
  return np.asarray(Image.fromarray(image).transform(size, Image.AFFINE, corners, Image.NEAREST, fillcolor=(128,) * 3))


COLOURS = {
  "AutoContrast": lambda image, level: ImageOps.autocontrast(image),
  "Equalize": lambda image, level: ImageOps.equalize(image),
  "Invert": lambda image, level: ImageOps.invert(image),
  "Posterize": lambda image, level: ImageOps.posterize(image, int(level * 4)),
  "Solarize": lambda image, level: ImageOps.solarize(image, int(level * 256)),
  # ImageOps has none of this name.
  "SolarizeAdd": lambda image, level: np.asarray(
    image.point(lambda v: min(v + int(level * 110), 255) if v < 128 else v)
  ),
  "Color": lambda image, level: ImageEnhance.Color(image).enhance(level * 1.8 + 0.1),
  "Brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(level * 1.8 + 0.1),
  "Sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(level * 1.8 + 0.1),
}
EXACT = ("Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd")


@pytest.mark.parametrize("magnitude", [3, 5, 8, 10, 15])
@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_those_of_pil_to_a_grey_level_or_the_two_that_cutting_for_rounding_makes(name, magnitude):
  # What is blended with the image is at most a level lower, and at `factor` 2.8 counts 1.8 times.
  most = 0 if name in EXACT else 3 if magnitude > 10 and name in ("Color", "Sharpness") else 1
  for seed in range(3):
    image = photo(seed=seed)
    want = np.asarray(COLOURS[name](Image.fromarray(image), magnitude / 10)).astype(int)
    got = applied(name, image, magnitude)
    assert got.dtype == np.uint8
    assert np.abs(got - want).max() <= most


def blended(low, image, factor):
  """What the published code makes of two images: float32, held to [0, 255], and cut to whole levels."""
  low = np.float32(low)
  return (low + np.float32(factor) * (np.float32(image) - low)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("magnitude", [3, 5, 8, 10, 15])
def test_color_is_a_blend_with_the_grey_of_tf(magnitude):
  image, factor = photo(), magnitude * 0.18 + 0.1
  want = blended(tf.image.rgb_to_grayscale(image).numpy(), image, factor)
  np.testing.assert_array_equal(applied("Color", image, magnitude), want)


@pytest.mark.parametrize(
  "height, width, level", [(40, 52, 8), (16, 16, 1), (15, 17, 0), (224, 224, 196), (300, 260, 255)]
)
def test_contrast_is_a_blend_with_the_number_of_pixels_over_256(height, width, level):
  image = photo(height, width)
  for magnitude in (3, 5, 15):
    got = applied("Contrast", image, magnitude)
    np.testing.assert_array_equal(got, blended(level, image, magnitude * 0.18 + 0.1))


@pytest.mark.parametrize("magnitude", [3, 5, 8, 10, 15])
def test_sharpness_is_a_blend_with_a_mean_of_thirteen_cut_to_whole_levels(magnitude):
  image, factor = photo(), magnitude * 0.18 + 0.1
  windows = np.lib.stride_tricks.sliding_window_view(image.astype(int), (3, 3), axis=(0, 1))
  sums = windows.sum((-1, -2)) + 4 * windows[..., 1, 1]
  smooth, whole = sums // 13, sums % 13 == 0  # A mean that is whole may fall a level short, as float32 rounds.
  got = applied("Sharpness", image, magnitude)
  inner = got[1:-1, 1:-1]
  want, short = (blended(level, image[1:-1, 1:-1], factor) for level in (smooth, smooth - 1))
  np.testing.assert_array_equal(inner[~whole], want[~whole])
  assert ((inner == want) | (inner == short))[whole].all()
  for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
    np.testing.assert_array_equal(got[edge], image[edge])
  np.testing.assert_array_equal(applied("Sharpness", image, 5), image)  # 5 stands for the factor 1.


def test_autocontrast_is_cut_to_whole_levels_as_float32_gives_them():
  image = np.arange(256, dtype=np.uint8).reshape(16, 16)
  for low, high in [(0, 200), (13, 240), (90, 141), (7, 8)]:
    channel = np.clip(image, low, high)
    scale = np.float32(255) / np.float32(high - low)
    want = (channel.astype(np.float32) * scale + np.float32(-low) * scale).clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(applied("AutoContrast", channel[..., None])[..., 0], want)


def test_posterize_keeps_at_least_one_bit_and_at_most_eight():
  image = photo()
  np.testing.assert_array_equal(applied("Posterize", image, 0), image & 128)
  np.testing.assert_array_equal(applied("Posterize", image, 30), image)


@pytest.mark.parametrize("value", [0, 77, 255])
@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
def test_a_flat_image_stays_as_it_is(name, value):
  image = np.full((9, 8, 3), value, np.uint8)
  np.testing.assert_array_equal(applied(name, image), image)


GEOMETRY = {
  "ShearX": lambda sign, level: (1, sign * level * 0.3, 0, 0, 1, 0),
  "ShearY": lambda sign, level: (1, 0, 0, sign * level * 0.3, 1, 0),
  "TranslateX": lambda sign, level: (1, 0, sign * level * 100, 0, 1, 0),
  "TranslateY": lambda sign, level: (1, 0, 0, 0, 1, sign * level * 100),
}


@pytest.mark.parametrize("magnitude", [1, 3.3])
@pytest.mark.parametrize("name", GEOMETRY)
def test_shears_and_translations_are_those_of_pil_in_either_direction(name, magnitude):
  image = photo()
  found = [applied(name, image, magnitude, seed) for seed in range(12)]
  sides = [moved(image, GEOMETRY[name](sign, magnitude / 10)) for sign in (-1, 1)]
  # Half a pixel may be rounded either way: a few pixels may come from a neighbour.
  hits = [[np.mean((out != side).any(-1)) < 0.02 for side in sides] for out in found]
  assert all(a != b for a, b in hits)
  assert {hit.index(True) for hit in hits} == {0, 1}


@pytest.mark.parametrize("magnitude", [2, 10])
def test_rotations_are_those_of_pil_in_either_direction(magnitude):
  image = photo()
  sides = [Image.fromarray(image).rotate(sign * magnitude * 3, Image.NEAREST, fillcolor=(128,) * 3) for sign in (-1, 1)]
  hits = []
  for seed in range(12):
    out = applied("Rotate", image, magnitude, seed)
    hits.append([np.mean((out != np.asarray(side)).any(-1)) < 0.02 for side in sides])
  assert all(a != b for a, b in hits)
  assert {hit.index(True) for hit in hits} == {0, 1}


def test_a_positive_angle_turns_counter_clockwise():
  image = photo(40, 40)
  turned = randaug.rotate(tf.constant(image), tf.constant(np.pi / 2, tf.float32)).numpy()
  np.testing.assert_array_equal(turned, np.rot90(image))


def test_cutout_greys_a_square_with_its_centre_anywhere():
  image = np.zeros((50, 60, 3), np.uint8)
  centres = []
  for seed in range(200):
    out = randaug.cutout(tf.constant(image), 4, Rng(tf.constant(seed, tf.int64))).numpy()
    rows, columns = np.flatnonzero(out.any((1, 2))), np.flatnonzero(out.any((0, 2)))
    want = image.copy()
    want[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 128
    np.testing.assert_array_equal(out, want)
    assert len(rows) == 8 or rows[0] == 0 or rows[-1] == 49
    assert len(columns) == 8 or columns[0] == 0 or columns[-1] == 59
    centres.append((rows[0] + 4 if rows[0] else rows[-1] - 3, columns[0] + 4 if columns[0] else columns[-1] - 3))
  assert stats.kstest(np.array(centres)[:, 0] / 50, "uniform").pvalue > 1e-4
  assert stats.kstest(np.array(centres)[:, 1] / 60, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_takes_grey_images_as_three_equal_channels(name):
  grey = photo()[..., :1]
  one, three = applied(name, grey), applied(name, grey.repeat(3, -1))
  assert one.shape == grey.shape
  # The grey of three equal channels may be a level off: the shares of red, green and blue add up to 0.9999.
  np.testing.assert_allclose(one.repeat(3, -1).astype(int), three.astype(int), atol=1)


def test_each_layer_draws_every_operation_equally_often():
  image = photo(12, 12)
  n = 3200
  fn = builder.get_preprocess_fn("randaug(1, 7)")
  dataset = tf.data.Dataset.from_tensor_slices({"_seed": np.arange(n)})
  outs = [
    x["image"].tobytes() for x in dataset.map(lambda d: fn({**d, "image": tf.constant(image)})).as_numpy_iterator()
  ]
  counts = []
  for name in ("Invert", "Equalize", "Posterize", "Solarize", "Color", "AutoContrast"):
    counts.append(outs.count(applied(name, image, 7).tobytes()))
  assert stats.chisquare([*counts, n - sum(counts)], [n / 16] * 6 + [n * 10 / 16]).pvalue > 1e-4


def test_two_layers_are_two_draws():
  image = tf.constant(photo())
  one, two = builder.get_preprocess_fn("randaug(1, 9)"), builder.get_preprocess_fn("randaug(2, 9)")
  seeds = tf.data.Dataset.range(60)
  pairs = seeds.map(lambda s: [fn({"image": image, "_seed": s})["image"] for fn in (one, two)]).as_numpy_iterator()
  assert np.mean([np.array_equal(a, b) for a, b in pairs]) < 0.2
