"""pp ops that resize images: to a size, or by one of their sides.

An image is [height, width, channels]; sizes are in pixels, an integer or (height, width). An image keeps its type.
Grey levels are cut to whole ones, not rounded: published weights were trained and scored on images that are darker by
half a level for it. To round, resize floats: `value_range(0,255)|resize(224)`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from core.pp.arguments import Method, Pixels, Size
from core.pp.held import require_image
from core.pp.registry import OpFunctions, key_op

ImageBatch = Shaped[np.ndarray, "batch height width channels"]


def sides_of(size: int | tuple[int, int]) -> tuple[int, int]:
  """Returns (height, width) of a size that is an integer or two of them."""
  return (size, size) if isinstance(size, int) else size


@key_op()
def resize(size: Size, method: Method = "bilinear", antialias: bool = False):
  """Resizes to `size`, whatever the aspect.

  Args:
    size: pixels, the new size.
    method: nearest, bilinear, area, gaussian, bicubic, lanczos3, lanczos5 or mitchellcubic (see `tf.image.resize`).
    antialias: widen the kernel when shrinking.
  """
  sides = sides_of(size)

  def per_example(image):
    return _resized(image, sides, method, antialias)

  def batched(images: ImageBatch) -> ImageBatch:
    return _resized_batch(images, sides)

  return OpFunctions(per_example, batched if method == "bilinear" and not antialias else None, require_image)


@key_op()
def resize_small(smaller_size: Pixels, method: Method = "area", antialias: bool = False):
  """Resizes so that the shorter side is `smaller_size`, keeping the aspect.

  Args:
    smaller_size: pixels.
    method: see `resize`.
    antialias: see `resize`.
  """
  return OpFunctions(_resize_side(smaller_size, method, antialias, shorter=True), accepts=require_image)


@key_op()
def resize_long(longer_size: Pixels, method: Method = "area", antialias: bool = True):
  """Resizes so that the longer side is `longer_size`, keeping the aspect.

  Args:
    longer_size: pixels.
    method: see `resize`.
    antialias: see `resize`; here it is the default, as in the published implementation. "area" has none.
  """
  return OpFunctions(_resize_side(longer_size, method, antialias, shorter=False), accepts=require_image)


def _resized(image: Any, size: Any, method: str, antialias: bool) -> Any:
  import tensorflow as tf

  resized = tf.image.resize(image, size, method=method, antialias=antialias)
  # Saturated: bicubic and the like weigh some pixels negatively and so leave the range of the input.
  return resized if resized.dtype == image.dtype else tf.saturate_cast(resized, image.dtype)


def _resize_side(length: int, method: str, antialias: bool, *, shorter: bool) -> Callable[[Any], Any]:
  """Returns the function that resizes an image so that the shorter, or longer, of its sides becomes `length`."""

  def per_example(image):
    import tensorflow as tf

    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    reference = tf.reduce_min(shape) if shorter else tf.reduce_max(shape)
    size = tf.maximum(1, tf.cast(tf.round(shape * (length / reference)), tf.int32))
    return _resized(image, size, method, antialias)

  return per_example


def _resized_batch(images: ImageBatch, size: tuple[int, int]) -> ImageBatch:
  """Resizes bilinearly, half-pixel centres, no antialiasing: the arithmetic of `tf.image.resize`, columns first."""
  values = images.astype(np.float32)
  for axis in (2, 1):
    below, above, share = _neighbours(images.shape[axis], size[axis - 1])
    share = share.reshape((-1,) + (1,) * (3 - axis))
    low = values.take(below, axis)
    values = low + (values.take(above, axis) - low) * share
  return values.astype(images.dtype)


def _neighbours(old: int, new: int) -> tuple[Int[np.ndarray, "new"], Int[np.ndarray, "new"], Float[np.ndarray, "new"]]:
  """Returns for each of `new` pixels along an axis the two of `old` it lies between, and the share of the second."""
  centre = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
  below = np.floor(centre)
  return np.maximum(below, 0).astype(int), np.minimum(below + 1, old - 1).astype(int), centre - below
