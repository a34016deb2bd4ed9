"""pp ops that decode images and cut boxes out of them.

An image is [height, width, channels], uint8 in [0, 255] as decoded; one channel (grey) is as good as three. Sizes are
in pixels, an integer or (height, width). Where an op has a form for batches it is on [batch, height, width, channels].
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from core.errors import UserError
from core.pp import decoding
from core.pp.arguments import Method, Percent, Ratio, Size
from core.pp.held import Held, require_bytes, require_image
from core.pp.ops_resize import resize, sides_of
from core.pp.registry import OpFunctions, key_op
from core.pp.rng import Rng

ImageBatch = Shaped[np.ndarray, "batch height width channels"]


@key_op()
def decode(channels: Literal[1, 3, 4] = 3, precise: bool = False, upright: bool | None = None):
  """Decodes JPEG, PNG, GIF, BMP, WebP, AVIF or TIFF bytes to a uint8 image, of several to the first.

  Args:
    channels: 3 for colour, 4 with opacity, 1 for grey, whatever the file holds.
    precise: decode JPEGs with the accurate integer DCT, the same bits as other decoders, instead of the fast one.
    upright: turn the image as its EXIF orientation says. None: True for image files of one's own (the sources folder
      and jsonl, the tools), False for prepared datasets, whose published numbers were made without.
  """

  def per_example(image_bytes):
    return decoding.decoded(image_bytes, channels, precise=precise, upright=bool(upright))

  return OpFunctions(per_example, accepts=require_bytes)


@key_op(random=True)
def decode_jpeg_and_inception_crop(
  size: Size | None = None,
  area_min: Percent = 5,
  area_max: Percent = 100,
  ratio_min: Ratio = 0.75,
  ratio_max: Ratio = 1.33,
  method: Method = "bilinear",
  antialias: bool = False,
  precise: bool = False,
  upright: bool | None = None,
):
  """Does what `decode|inception_crop` does at less cost: only the crop of a JPEG is decoded.

  Of the same box the right-most column may differ, by up to 27 of 255 as seen: where colours are stored at half the
  width, TensorFlow's partial decoding knows no neighbour beyond the crop. What is no JPEG is decoded whole, and so is
  what is turned.

  Args:
    size: pixels, what the crop is resized to; None leaves it.
    area_min: least area of the crop, in percent of the image, above 0.
    area_max: most area of the crop, in percent of the image, at most 100.
    ratio_min: least width / height of the crop.
    ratio_max: most width / height of the crop.
    method: see `resize`.
    antialias: see `resize`.
    precise: the same bits as `decode(precise=True)|inception_crop`, at its cost.
    upright: see `decode`.
  """
  _check_order("area_min", area_min, "area_max", area_max)
  _check_order("ratio_min", ratio_min, "ratio_max", ratio_max)
  to_size = resize(size, method, antialias).per_example if size is not None else None

  def per_example(image_bytes, rng):
    import tensorflow as tf

    key = rng.key()  # One draw, whichever way it goes.

    def box(shape):
      return _distorted_box(shape, key, (area_min, area_max), (ratio_min, ratio_max))

    def of_part():
      begin, extent = box(tf.io.extract_jpeg_shape(image_bytes))
      return tf.io.decode_and_crop_jpeg(image_bytes, tf.concat([begin[:2], extent[:2]], axis=0), channels=3)

    def of_whole():
      image = decoding.decoded(image_bytes, 3, precise=precise, upright=bool(upright))
      return tf.slice(image, *box(tf.shape(image)))

    in_part = decoding.is_jpeg(image_bytes) & (not precise)
    if upright and not precise:
      in_part &= tf.equal(decoding.orientation(image_bytes), 1)
    image = tf.ensure_shape(tf.cond(in_part, of_part, of_whole), [None, None, 3])
    return to_size(image) if to_size else image

  return OpFunctions(per_example, accepts=require_bytes)


@key_op(random=True)
def inception_crop(
  size: Size | None = None,
  area_min: Percent = 5,
  area_max: Percent = 100,
  method: Method = "bilinear",
  antialias: bool = False,
):
  """Crops a random box of random area and shape, then resizes it (Szegedy et al. 2015, section 6).

  Args:
    size: pixels, what the crop is resized to; None leaves it.
    area_min: least area of the crop, in percent of the image, above 0.
    area_max: most area of the crop, in percent of the image, at most 100.
    method: see `resize`.
    antialias: see `resize`.
  """
  _check_order("area_min", area_min, "area_max", area_max)
  to_size = resize(size, method, antialias).per_example if size is not None else None

  def per_example(image, rng):
    import tensorflow as tf

    begin, extent = _distorted_box(tf.shape(image), rng.key(), (area_min, area_max), (0.75, 1.33))
    crop = tf.ensure_shape(tf.slice(image, begin, extent), [None, None, image.shape[2]])
    return to_size(crop) if to_size else crop

  return OpFunctions(per_example, accepts=require_image)


@key_op(random=True)
def random_crop(crop_size: Size):
  """Crops a box at a random place.

  Args:
    crop_size: pixels, of the box.
  """
  height, width = sides_of(crop_size)

  def accepts(held: Held) -> None:
    _require_room(held, height, width)

  def per_example(image, rng):
    image_height, image_width = _room(image, height, width, "random_crop")
    top, left = rng.integer(0, image_height - height + 1), rng.integer(0, image_width - width + 1)
    return _crop(image, top, left, height, width)

  def batched(images: ImageBatch, rng: Rng) -> ImageBatch:
    image_height, image_width = images.shape[1:3]
    top, left = rng.integer(0, image_height - height + 1), rng.integer(0, image_width - width + 1)
    windows = np.lib.stride_tricks.sliding_window_view(images, (height, width), axis=(1, 2))
    crops = windows[np.arange(len(images)), top, left]
    return np.ascontiguousarray(np.moveaxis(crops, 1, -1))

  return OpFunctions(per_example, batched, accepts)


@key_op()
def central_crop(crop_size: Size | None = None):
  """Crops a box in the middle.

  Args:
    crop_size: pixels, of the box; None: the largest square.
  """
  box = None if crop_size is None else sides_of(crop_size)

  def accepts(held: Held) -> None:
    if box is None:
      require_image(held)
    else:
      _require_room(held, *box)

  def per_example(image):
    import tensorflow as tf

    if box is None:
      image_height, image_width = _sides(image)
      known = isinstance(image_height, int)
      height = width = min(image_height, image_width) if known else tf.minimum(image_height, image_width)
    else:
      height, width = box
      image_height, image_width = _room(image, height, width, "central_crop")
    return _crop(image, (image_height - height) // 2, (image_width - width) // 2, height, width)

  def batched(images: ImageBatch) -> ImageBatch:
    image_height, image_width = images.shape[1:3]
    height, width = box or (min(image_height, image_width),) * 2
    top, left = (image_height - height) // 2, (image_width - width) // 2
    return images[:, top : top + height, left : left + width]

  return OpFunctions(per_example, batched, accepts)


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
  if low > high:
    raise UserError(f"{low_name}, {low!r}, must not exceed {high_name}, {high!r}")


def _sides(image: Any) -> tuple[Any, Any]:
  """Returns height and width: integers where known while tracing, else tensors."""
  if None not in tuple(image.shape[:2]):
    return tuple(image.shape[:2])
  import tensorflow as tf

  shape = tf.shape(image)
  return shape[0], shape[1]


def _too_small(height: int, width: int) -> str:
  return f"the crop is {height} x {width} and the image is smaller:"


def _require_room(held: Held, height: int, width: int) -> None:
  """Refuses what is no image, or one that a crop of `height` by `width` has no room in, where its size is known."""
  require_image(held)
  image_height, image_width = held.shape[:2]
  if None not in (image_height, image_width) and (image_height < height or image_width < width):
    raise UserError(f"{_too_small(height, width)} {image_height} x {image_width}")


def _room(image: Any, height: int, width: int, name: str) -> tuple[Any, Any]:
  """Returns height and width of an image; refuses, when its size is known, one that has no room for a crop."""
  image_height, image_width = _sides(image)
  if isinstance(image_height, int):
    return image_height, image_width
  import tensorflow as tf

  fits = (image_height >= height) & (image_width >= width)
  message = f"pp op {name}: {_too_small(height, width)}"
  check = tf.raw_ops.Assert(condition=fits, data=[message, tf.shape(image)])
  with tf.control_dependencies([check]):
    return tf.identity(image_height), tf.identity(image_width)


def _crop(image: Any, top: Any, left: Any, height: Any, width: Any) -> Any:
  import tensorflow as tf

  return tf.slice(image, tf.stack([top, left, 0]), [height, width, -1])


def _distorted_box(shape: Any, key: Any, area: tuple[float, float], ratio: tuple[float, float]) -> tuple[Any, Any]:
  """Returns `begin` and `size` for `tf.slice` of a box with area (percent) and ratio (width / height) in two ranges."""
  import tensorflow as tf

  begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    tf.zeros([1, 0, 4]),
    key,
    min_object_covered=0.0,
    aspect_ratio_range=ratio,
    area_range=(area[0] / 100, area[1] / 100),
    use_image_if_no_bounding_boxes=True,
  )
  return begin, extent
