"""Resizing, against jax.image, PIL and NumPy, in graph mode inside tf.data."""

import jax
import numpy as np
import pytest
from PIL import Image

from core.pp.op_examples import HEIGHT, WIDTH, one_key, photo


@pytest.mark.parametrize("size", [(8, 8), (31, 45), (16, 22), (7, 40)])
def test_bilinear_is_that_of_jax(size):
  image = photo(HEIGHT, WIDTH).astype(np.float32)
  want = jax.image.resize(image, (*size, 3), "bilinear", antialias=False)
  np.testing.assert_allclose(one_key(f"resize({size})", image), want, atol=2e-3)
  np.testing.assert_allclose(one_key(f"resize({size})", image.astype(np.uint8)), want, atol=0.501)


@pytest.mark.parametrize(
  "method, pil", [("bilinear", Image.BILINEAR), ("lanczos3", Image.LANCZOS), ("bicubic", Image.BICUBIC)]
)
def test_antialiased_resizing_is_that_of_pil(method, pil):
  image = photo(64, 90)
  want = np.asarray(Image.fromarray(image).resize((29, 24), pil)).astype(int)
  got = one_key(f"resize((24, 29), '{method}', antialias=True)", image)
  assert got.dtype == np.uint8
  assert np.abs(got - want).max() <= 1


def test_overshoot_is_clipped():
  image = np.zeros((16, 16, 1), np.uint8)
  image[:, 8:] = 255
  assert (np.diff(one_key("resize(64, 'bicubic')", image)[0, :, 0].astype(int)) >= 0).sum() >= 62


def test_nearest_and_area_are_those_of_numpy():
  image = photo(HEIGHT, WIDTH)
  np.testing.assert_array_equal(one_key("resize((48, 66), 'nearest')", image), image.repeat(3, 0).repeat(3, 1))
  blocks = image.reshape(8, 2, 11, 2, 3).mean((1, 3))
  np.testing.assert_allclose(one_key("resize((8, 11), 'area')", image), blocks, atol=0.501)


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
    np.testing.assert_allclose(got, image.reshape(8, 2, 11, 2, 3).mean((1, 3)), atol=0.501)
