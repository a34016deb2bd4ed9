"""Resizing, against jax.image, PIL, NumPy and tf.image, in graph mode inside tf.data."""

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from core.pp import builder
from core.pp.op_examples import HEIGHT, WIDTH, one_key, photo, run_tf


def test_grey_levels_are_cut_to_whole_ones():
  image = np.array([[0, 1], [2, 7]], np.uint8)[..., None]
  want = [[0, 0, 0, 1], [0, 1, 2, 2], [1, 2, 4, 5], [2, 3, 5, 7]]  # 0.25 and 0.75 of each neighbour, and then floor.
  assert one_key("resize(4)", image)[..., 0].tolist() == want
  assert builder.get_batched_fn("resize(4)")({"image": image[None]})["image"][0, ..., 0].tolist() == want
  assert one_key("resize(1, 'area')", np.array([[1, 2], [3, 5]], np.uint8)[..., None]).item() == 2  # 2.75
  assert one_key("resize_small(1)", np.array([[1, 2], [3, 5]], np.uint8)[..., None]).item() == 2


@pytest.mark.parametrize("method", ["bilinear", "area", "bicubic", "lanczos3", "gaussian", "nearest"])
@pytest.mark.parametrize("antialias", [False, True])
def test_grey_levels_are_those_of_tf_clipped_and_cast(method, antialias):
  image = photo(37, 50)
  theirs = tf.image.resize(image, (24, 29), method, antialias=antialias)
  want = tf.cast(tf.clip_by_value(theirs, 0, 255), tf.uint8)
  np.testing.assert_array_equal(one_key(f"resize((24, 29), {method!r}, {antialias})", image), want)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [(16, 22), (9, 40)])
def test_an_image_keeps_its_type_and_both_forms_have_the_same_bits(dtype, size):
  data = {"image": (photo(HEIGHT, WIDTH).astype(np.int64)[None] * 100 - 9_000).astype(dtype)}
  (alone,) = run_tf(f"resize({size})", data)
  together = builder.get_batched_fn(f"resize({size})")(data)
  assert alone["image"].dtype == together["image"].dtype == dtype
  np.testing.assert_array_equal(together["image"][0], alone["image"])


def test_resize_long_antialiases_unless_told_otherwise_and_the_others_do_not():
  image = photo(64, 90)
  smooth, rough = (one_key(f"resize((32, 45), 'bilinear', {antialias})", image) for antialias in (True, False))
  assert (smooth != rough).any()
  np.testing.assert_array_equal(one_key("resize_long(45, 'bilinear')", image), smooth)
  np.testing.assert_array_equal(one_key("resize_long(45, 'bilinear', antialias=False)", image), rough)
  np.testing.assert_array_equal(one_key("resize_small(32, 'bilinear')", image), rough)


@pytest.mark.parametrize("size", [(8, 8), (31, 45), (16, 22), (7, 40)])
def test_bilinear_is_that_of_jax(size):
  image = photo(HEIGHT, WIDTH).astype(np.float32)
  want = jax.image.resize(image, (*size, 3), "bilinear", antialias=False)
  np.testing.assert_allclose(one_key(f"resize({size})", image), want, atol=2e-3)
  levels = one_key(f"resize({size})", image.astype(np.uint8))
  assert ((want - levels > -2e-3) & (want - levels < 1)).all()


@pytest.mark.parametrize(
  "method, pil", [("bilinear", Image.BILINEAR), ("lanczos3", Image.LANCZOS), ("bicubic", Image.BICUBIC)]
)
def test_antialiased_resizing_is_that_of_pil(method, pil):
  image = photo(64, 90)
  want = np.asarray(Image.fromarray(image).resize((29, 24), pil)).astype(int)
  got = one_key(f"value_range(0,255)|resize((24, 29), '{method}', antialias=True)", image)
  assert np.abs(np.rint(got.clip(0, 255)) - want).max() <= 1


def test_overshoot_is_clipped():
  image = np.zeros((16, 16, 1), np.uint8)
  image[:, 8:] = 255
  assert (np.diff(one_key("resize(64, 'bicubic')", image)[0, :, 0].astype(int)) >= 0).sum() >= 62


def test_nearest_and_area_are_those_of_numpy():
  image = photo(HEIGHT, WIDTH)
  np.testing.assert_array_equal(one_key("resize((48, 66), 'nearest')", image), image.repeat(3, 0).repeat(3, 1))
  blocks = image.reshape(8, 2, 11, 2, 3).astype(int).sum((1, 3)) // 4
  np.testing.assert_array_equal(one_key("resize((8, 11), 'area')", image), blocks)


@pytest.mark.parametrize(
  "pp, shape",
  [
    ("resize_small(8)", (8, 11)),
    ("resize_small(24)", (24, 33)),
    ("resize_long(11)", (8, 11)),
    ("resize_long(3)", (2, 3)),
  ],
)
def test_the_aspect_is_kept_and_shrinking_averages_areas(pp, shape):
  image = photo(HEIGHT, WIDTH)
  got = one_key(pp, image)
  assert got.shape == (*shape, 3)
  if shape == (8, 11):
    np.testing.assert_array_equal(got, image.reshape(8, 2, 11, 2, 3).astype(int).sum((1, 3)) // 4)
