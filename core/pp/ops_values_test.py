"""Flips, padding and ranges of values, against NumPy, in graph mode inside tf.data."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from core.pp import builder
from core.pp.op_examples import HEIGHT, WIDTH, one_key, photo


def test_half_the_images_are_mirrored():
  image = photo(HEIGHT, WIDTH)
  fn = builder.get_preprocess_fn("flip_lr")
  dataset = tf.data.Dataset.range(1000).map(lambda seed: fn({"image": tf.constant(image), "_seed": seed})["image"])
  made = list(dataset.as_numpy_iterator())
  flips = [np.array_equal(each, image[:, ::-1]) for each in made]
  keeps = [np.array_equal(each, image) for each in made]
  assert sum(flips) + sum(keeps) == 1000
  assert stats.binomtest(sum(flips), 1000).pvalue > 1e-4


@pytest.mark.parametrize("mode", ["constant", "reflect", "symmetric"])
def test_padding_is_that_of_numpy(mode):
  image = photo(HEIGHT, WIDTH)
  want = np.pad(image, [(2, 2), (5, 5), (0, 0)], mode)
  np.testing.assert_array_equal(one_key(f"pad((2, 5), '{mode}')", image), want)


def test_values_are_mapped_linearly():
  image = photo(HEIGHT, WIDTH)
  image[0, 0], image[0, 1] = 0, 255
  got = one_key("value_range(-1, 1)", image)
  np.testing.assert_allclose(got, image / 127.5 - 1, atol=2e-7)
  assert (got.min(), got.max(), got.dtype) == (-1, 1, np.float32)
  clipped = one_key("value_range(0, 10, 50, 200, clip_values=True)", image)
  np.testing.assert_allclose(clipped, np.clip((image - 50.0) / 15, 0, 10), atol=2e-6)
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  np.testing.assert_allclose(one_key("vgg_value_range", image), (image / 255 - mean) / std, atol=2e-6)
