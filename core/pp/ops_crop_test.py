"""Decoding and crops, against PIL and NumPy, in graph mode inside tf.data."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import stats

from core.pp import builder
from core.pp.op_examples import HEIGHT, WIDTH, encoded, examples, one_key, photo, run_tf


def test_png_decodes_to_its_pixels():
  data = examples()
  for out, image in zip(run_tf("decode(inkey='png', outkey='d')", data), data["image"]):
    np.testing.assert_array_equal(out["d"], image)


def test_precise_jpeg_decodes_as_in_pil():
  data = examples()
  for out, jpeg in zip(run_tf("decode(precise=True, inkey='jpeg', outkey='d')", data), data["jpeg"]):
    np.testing.assert_allclose(out["d"], np.asarray(Image.open(io.BytesIO(jpeg))), rtol=0, atol=1)


# Crops. Red and green tell each pixel's place.


def ramp(height, width):
  image = np.zeros((height, width, 3), np.uint8)
  image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
  return image


def boxes(crops):
  """(left, top, width, height) of crops of `ramp`; each must be a slice of it."""
  found = []
  for crop in crops:
    left, top = map(int, crop[0, 0, :2])
    np.testing.assert_array_equal(crop, ramp(256, 256)[top : top + crop.shape[0], left : left + crop.shape[1]])
    found.append((left, top, crop.shape[1], crop.shape[0]))
  return np.array(found)


def crops_of(pp, image, n):
  fn = builder.get_preprocess_fn(pp)
  dataset = tf.data.Dataset.range(n).map(lambda seed: fn({"image": tf.constant(image), "_seed": seed})["image"])
  return list(dataset.as_numpy_iterator())


def test_a_random_crop_is_everywhere_alike():
  found = boxes(crops_of("random_crop((60, 50))", ramp(63, 54), 2000))
  assert set(map(tuple, found[:, 2:])) == {(50, 60)}
  places = np.unique(found[:, :2], axis=0, return_counts=True)[1]
  assert len(places) == 5 * 4
  assert stats.chisquare(places).pvalue > 1e-4


def test_an_inception_crop_keeps_to_its_areas_and_ratios_and_uses_them():
  found = boxes(crops_of("inception_crop(None, 20, 60)", ramp(120, 160), 1000))
  area, ratio = found[:, 2] * found[:, 3] / (120 * 160), found[:, 2] / found[:, 3]
  assert area.min() > 0.19 and area.max() < 0.61  # noqa: PT018
  assert area.min() < 0.22 and area.max() > 0.58  # noqa: PT018
  assert ratio.min() > 0.73 and ratio.max() < 1.36  # noqa: PT018
  assert ratio.min() < 0.77 and ratio.max() > 1.3  # noqa: PT018
  assert len(np.unique(found[:, :2], axis=0)) > 500


def test_the_fused_crop_is_the_crop_of_the_decoded_jpeg():
  jpeg = encoded(photo(120, 160), format="JPEG", quality=95)
  crops = crops_of("decode_jpeg_and_inception_crop(area_min=10, ratio_min=0.5, ratio_max=2)", jpeg, 40)
  image = tf.io.decode_jpeg(jpeg).numpy()
  for crop in crops:
    # libjpeg smooths colour across the border of what it decodes, so the outermost pixels may differ.
    inner = crop[4:-4, 4:-4]
    windows = np.lib.stride_tricks.sliding_window_view(image, inner.shape[:2], axis=(0, 1))
    corners = windows[..., [0, 0, -1, -1], [0, -1, 0, -1]] == inner[[0, 0, -1, -1], [0, -1, 0, -1]].T
    places = np.argwhere(corners.all((-1, -2)))
    assert any(np.array_equal(image[y : y + inner.shape[0], x : x + inner.shape[1]], inner) for y, x in places)
  ratios = [crop.shape[1] / crop.shape[0] for crop in crops]
  assert min(ratios) < 0.75
  assert max(ratios) > 1.4


@pytest.mark.parametrize("size, top, left", [((9, 11), 3, 5), ((16, 22), 0, 0), ((15, 21), 0, 0)])
def test_a_central_crop_is_the_middle(size, top, left):
  image = photo(HEIGHT, WIDTH)
  crop = one_key(f"central_crop({size})", image)
  np.testing.assert_array_equal(crop, image[top : top + size[0], left : left + size[1]])


def test_a_central_crop_without_size_is_the_largest_square_of_images_of_any_size():
  sizes = [(16, 22), (30, 10), (5, 5)]
  data = {"image": np.array([encoded(ramp(*size), format="PNG") for size in sizes], object)}
  found = boxes(out["image"] for out in run_tf("decode|central_crop", data))
  assert found.tolist() == [[3, 0, 16, 16], [0, 10, 10, 10], [0, 0, 5, 5]]


@pytest.mark.parametrize("op", ["random_crop", "central_crop"])
def test_an_image_smaller_than_its_crop_is_refused_when_it_comes_by(op):
  data = {"image": np.array([encoded(ramp(9, 9), format="PNG")], object), "_seed": np.arange(1)}
  with pytest.raises(tf.errors.InvalidArgumentError, match=f"pp op {op}: the crop is 10 x 8 and the image is smaller"):
    run_tf(f"decode|{op}((10, 8))", data)
