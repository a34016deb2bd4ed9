"""Flips, padding and ranges of values, against NumPy, in graph mode inside tf.data."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from core.errors import UserError
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


def test_a_bound_a_channel_maps_each_channel_by_itself():
  image = photo(HEIGHT, WIDTH)
  low, high = np.array([0, 10, 20]), np.array([255, 200, 100])
  got = one_key("value_range(-1, 1, [0, 10, 20], [255, 200, 100])", image)
  np.testing.assert_allclose(got, (image - low) / (high - low) * 2 - 1, atol=1e-6)
  clipped = one_key("value_range(0, 1, in_max=(255, 200, 100), clip_values=True)", image)
  np.testing.assert_allclose(clipped, np.clip(image / high, 0, 1), atol=1e-6)
  with pytest.raises(UserError, match=r"pp op value_range: in_min and in_max are of 3 channels; the image is uint8"):
    one_key("value_range(in_min=(0, 1, 2))", image[..., :1])


@pytest.mark.parametrize(
  "arguments, words",
  [
    ("in_min=(0, 1), in_max=(1, 2, 3)", r"in_min and in_max are a number or one a channel, got \(0.0, 1.0\)"),
    ("in_min=()", "in_min and in_max are a number or one a channel"),
    ("in_min=(0, 5), in_max=(1, 5)", "in_min and in_max are alike in a channel"),
  ],
)
def test_bounds_that_are_none_are_refused(arguments, words):
  with pytest.raises(UserError, match=f"pp op value_range: {words}"):
    builder.get_batched_fn(f"value_range({arguments})")


def test_clips_values_are_those_of_its_published_mean_and_deviation():
  # As transformers' CLIPImageProcessor has them (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD), in parts of 255.
  mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
  image = photo(HEIGHT, WIDTH)
  got = one_key("clip_value_range", image)
  np.testing.assert_allclose(got, (image / 255 - mean) / std, atol=2e-6)
  assert got.max() > 1.5  # It clips nothing.
