"""pp ops on images: decoding, cropping, resizing, flipping, padding, ranges of values.

An image is [height, width, channels], uint8 in [0, 255] as decoded; one channel (grey) is as good as three. Sizes are
in pixels, an integer or (height, width). Where an op has a form for batches it is on [batch, height, width, channels].
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from core.errors import UserError, nearest
from core.pp.registry import OpFunctions, key_op

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

# The methods of `tf.image.resize`; the last four weigh some pixels negatively and so can leave the range of the input.
_METHODS = ("nearest", "bilinear", "area", "gaussian", "bicubic", "lanczos3", "lanczos5", "mitchellcubic")
_OVERSHOOTING = _METHODS[4:]

ImageBatch = Shaped[np.ndarray, "batch height width channels"]


@key_op()
def decode(channels=3, precise=False):
  """Decodes JPEG, PNG, GIF or BMP bytes to a uint8 image.

  Args:
    channels: 3 for colour, 4 with opacity (PNG), 1 for grey, whatever the file holds.
    precise: decode JPEGs with the accurate integer DCT, the same bits as other decoders, instead of the fast one.
  """
  if channels not in (1, 3, 4):
    raise UserError(f"channels must be 1, 3 or 4, got {channels!r}")

  def per_example(image_bytes):
    import tensorflow as tf

    if precise:
      return tf.io.decode_jpeg(image_bytes, channels=channels, dct_method="INTEGER_ACCURATE")
    return tf.io.decode_image(image_bytes, channels=channels, expand_animations=False)

  return OpFunctions(per_example)


@key_op(random=True)
def decode_jpeg_and_inception_crop(
  size=None, area_min=5, area_max=100, ratio_min=0.75, ratio_max=1.33, method="bilinear", antialias=False
):
  """`decode|inception_crop` at less cost: only the crop of the JPEG is decoded.

  Args:
    size: what the crop is resized to; None leaves it.
    area_min: least area of the crop, in percent of the image.
    area_max: most area of the crop, in percent of the image.
    ratio_min: least width / height of the crop.
    ratio_max: most width / height of the crop.
    method: see `resize`.
    antialias: see `resize`.
  """
  _check_area(area_min, area_max)
  to_size = resize(size, method, antialias).per_example if size is not None else None

  def per_example(image_bytes, rng):
    import tensorflow as tf

    shape = tf.io.extract_jpeg_shape(image_bytes)
    begin, extent = _distorted_box(shape, rng, (area_min, area_max), (ratio_min, ratio_max))
    window = tf.concat([begin[:2], extent[:2]], axis=0)
    image = tf.io.decode_and_crop_jpeg(image_bytes, window, channels=3)
    return to_size(image) if to_size else image

  return OpFunctions(per_example)


@key_op(random=True)
def inception_crop(size=None, area_min=5, area_max=100, method="bilinear", antialias=False):
  """Crops a random box of random area and shape, then resizes it (Szegedy et al. 2015, section 6).

  Args:
    size: what the crop is resized to; None leaves it.
    area_min: least area of the crop, in percent of the image.
    area_max: most area of the crop, in percent of the image.
    method: see `resize`.
    antialias: see `resize`.
  """
  _check_area(area_min, area_max)
  to_size = resize(size, method, antialias).per_example if size is not None else None

  def per_example(image, rng):
    import tensorflow as tf

    _check_image(image)
    begin, extent = _distorted_box(tf.shape(image), rng, (area_min, area_max), (0.75, 1.33))
    crop = tf.ensure_shape(tf.slice(image, begin, extent), [None, None, image.shape[2]])
    return to_size(crop) if to_size else crop

  return OpFunctions(per_example)


@key_op(random=True)
def random_crop(crop_size):
  """Crops a box of `crop_size` at a random place."""
  height, width = _size("crop_size", crop_size)

  def per_example(image, rng):
    image_height, image_width = _room(image, height, width, "random_crop")
    top, left = rng.integer(0, image_height - height + 1), rng.integer(0, image_width - width + 1)
    return _crop(image, top, left, height, width)

  def batched(images, rng):
    image_height, image_width = _room(images[0], height, width, "random_crop")
    top, left = rng.integer(0, image_height - height + 1), rng.integer(0, image_width - width + 1)
    windows = np.lib.stride_tricks.sliding_window_view(images, (height, width), axis=(1, 2))
    crops = windows[np.arange(len(images)), top, left]
    return np.ascontiguousarray(np.moveaxis(crops, 1, -1))

  return OpFunctions(per_example, batched)


@key_op()
def central_crop(crop_size=None):
  """Crops the box of `crop_size` in the middle; None crops the largest square."""
  box = None if crop_size is None else _size("crop_size", crop_size)

  def per_example(image):
    import tensorflow as tf

    _check_image(image)
    if box is None:
      image_height, image_width = _sides(image)
      known = isinstance(image_height, int)
      height = width = min(image_height, image_width) if known else tf.minimum(image_height, image_width)
    else:
      height, width = box
      image_height, image_width = _room(image, height, width, "central_crop")
    return _crop(image, (image_height - height) // 2, (image_width - width) // 2, height, width)

  def batched(images):
    image_height, image_width = images.shape[1:3]
    height, width = box or (min(image_height, image_width),) * 2
    _room(images[0], height, width, "central_crop")
    top, left = (image_height - height) // 2, (image_width - width) // 2
    return images[:, top : top + height, left : left + width]

  return OpFunctions(per_example, batched)


@key_op()
def resize(size, method="bilinear", antialias=False):
  """Resizes to `size`, whatever the aspect. uint8 stays uint8, rounded.

  Args:
    size: the new size.
    method: nearest, bilinear, area, gaussian, bicubic, lanczos3, lanczos5 or mitchellcubic (see `tf.image.resize`).
    antialias: widen the kernel when shrinking.
  """
  size = _size("size", size)
  _check_method(method)

  def per_example(image):
    _check_image(image)
    return _resized(image, size, method, antialias)

  def batched(images):
    _check_image(images[0])
    return _resized_batch(images, size)

  return OpFunctions(per_example, batched if method == "bilinear" and not antialias else None)


@key_op()
def resize_small(smaller_size, method="area", antialias=False):
  """Resizes so that the shorter side is `smaller_size`, keeping the aspect; see `resize`."""
  return OpFunctions(_resize_side("smaller_size", smaller_size, method, antialias, min))


@key_op()
def resize_long(longer_size, method="area", antialias=False):
  """Resizes so that the longer side is `longer_size`, keeping the aspect; see `resize`."""
  return OpFunctions(_resize_side("longer_size", longer_size, method, antialias, max))


@key_op(random=True)
def flip_lr():
  """Mirrors left to right, one time in two."""

  def per_example(image, rng):
    import tensorflow as tf

    _check_image(image)
    # A conditional: a reversal costs more than it, and half the images need none.
    return tf.cond(rng.integer(0, 2) == 1, lambda: tf.reverse(image, [1]), lambda: image)

  def batched(images, rng):
    return np.where((rng.integer(0, 2) == 1)[:, None, None, None], images[:, :, ::-1], images)

  return OpFunctions(per_example, batched)


@key_op()
def pad(size, mode="constant", value=0):
  """Adds `size` pixels on every side: `pad(4)|random_crop(32)` is the usual augmentation of CIFAR.

  Args:
    size: pixels on each side, an integer or (above and below, left and right).
    mode: "constant", "reflect" (the edge not repeated) or "symmetric" (the edge repeated).
    value: what constant padding is filled with.
  """
  rows, columns = _size("size", size, least=0)
  modes = ("constant", "reflect", "symmetric")
  if mode not in modes:
    raise UserError(f"mode {mode!r} is unknown{nearest(str(mode), modes)}")
  amounts = [[rows, rows], [columns, columns], [0, 0]]

  def per_example(image):
    import tensorflow as tf

    _check_image(image)
    return tf.pad(image, amounts, mode.upper(), constant_values=value)

  def batched(images):
    fill = dict(constant_values=value) if mode == "constant" else {}
    return np.pad(images, [[0, 0], *amounts], mode, **fill)

  return OpFunctions(per_example, batched)


@key_op()
def value_range(vmin=-1, vmax=1, in_min=0, in_max=255, clip_values=False):
  """Maps values linearly from [in_min, in_max] to [vmin, vmax], as float32.

  Args:
    vmin: what `in_min` becomes.
    vmax: what `in_max` becomes.
    in_min: least value expected.
    in_max: greatest value expected.
    clip_values: hold values beyond the expected range at vmin and vmax.
  """
  if in_min == in_max:
    raise UserError(f"in_min and in_max are both {in_min!r}")
  scale = np.float32((vmax - vmin) / (in_max - in_min))
  offset = np.float32(vmin - in_min * (vmax - vmin) / (in_max - in_min))
  low, high = sorted((vmin, vmax))

  def per_example(image):
    import tensorflow as tf

    values = tf.cast(image, tf.float32) * scale + offset
    return tf.clip_by_value(values, low, high) if clip_values else values

  def batched(images):
    values = images.astype(np.float32) * scale + offset
    return np.clip(values, low, high) if clip_values else values

  return OpFunctions(per_example, batched)


@key_op()
def vgg_value_range(mean=IMAGENET_MEAN, std=IMAGENET_STD):
  """Takes the mean away and divides by the standard deviation, for each channel; by default those of ImageNet."""
  mean, std = np.float32(mean), np.float32(std)
  scale, offset = np.broadcast_arrays(1 / std, -mean / std)
  if scale.ndim > 1:
    raise UserError(f"mean and std are a number or one a channel, got {mean.tolist()!r} and {std.tolist()!r}")

  def check(image):
    if scale.ndim and image.shape[-1] != scale.size:
      raise UserError(f"mean and std are of {scale.size} channels; the image has the shape {tuple(image.shape)}")

  def per_example(image):
    import tensorflow as tf

    check(image)
    if not scale.ndim:
      return tf.cast(image, tf.float32) * scale + offset
    _check_image(image)
    values = tf.cast(as_rows(image), tf.float32) * each_column(scale, image) + each_column(offset, image)
    return tf.ensure_shape(tf.reshape(values, tf.shape(image)), image.shape)

  def batched(images):
    check(images)
    return images.astype(np.float32) * scale + offset

  return OpFunctions(per_example, batched)


def _size(name: str, size: Any, least: int = 1) -> tuple[int, int]:
  """(height, width) of a size that is an integer or two of them."""
  pair = (size, size) if isinstance(size, int) else size
  fine = isinstance(pair, tuple | list) and len(pair) == 2
  if not fine or any(isinstance(side, bool) or not isinstance(side, int) or side < least for side in pair):
    raise UserError(f"{name} is in pixels, an integer of at least {least} or (height, width), got {size!r}")
  return tuple(pair)


def _check_method(method: Any) -> None:
  if method not in _METHODS:
    raise UserError(f"method {method!r} is unknown{nearest(str(method), _METHODS)}")


def _check_area(area_min: Any, area_max: Any) -> None:
  if not 0 < area_min <= area_max <= 100:
    raise UserError(f"0 < area_min <= area_max <= 100 must hold, in percent, got {area_min!r} and {area_max!r}")


def _check_image(image: Any) -> None:
  if len(image.shape) != 3:
    raise UserError(f"an image is [height, width, channels]; this has the shape {tuple(image.shape)}")


def _sides(image: Any) -> tuple[Any, Any]:
  """Height and width: integers where known while tracing, else tensors."""
  if None not in tuple(image.shape[:2]):
    return tuple(image.shape[:2])
  import tensorflow as tf

  shape = tf.shape(image)
  return shape[0], shape[1]


def _room(image: Any, height: int, width: int, name: str) -> tuple[Any, Any]:
  """Height and width of `image`, which must hold a crop of `height` by `width`."""
  _check_image(image)
  image_height, image_width = _sides(image)
  small = f"the crop is {height} x {width} and the image is smaller:"
  if isinstance(image_height, int):
    if image_height < height or image_width < width:
      raise UserError(f"{small} {image_height} x {image_width}")
    return image_height, image_width
  import tensorflow as tf

  fits = (image_height >= height) & (image_width >= width)
  check = tf.raw_ops.Assert(condition=fits, data=[f"pp op {name}: {small}", tf.shape(image)])
  with tf.control_dependencies([check]):
    return tf.identity(image_height), tf.identity(image_width)


def as_rows(image):
  """[height, width * channels]: TensorFlow broadcasts a row over this many times faster than a colour over pixels."""
  import tensorflow as tf

  return tf.reshape(image, [tf.shape(image)[0], -1])


def each_column(by_channel, image):
  """A value a channel, repeated for each column of `as_rows(image)`."""
  import tensorflow as tf

  return tf.tile(by_channel, [tf.shape(image)[1]])


def _crop(image, top, left, height, width):
  import tensorflow as tf

  return tf.slice(image, tf.stack([top, left, 0]), [height, width, -1])


def _distorted_box(shape, rng, area, ratio):
  """`begin` and `size` for `tf.slice` of a box with area (percent) and ratio (width / height) in the given ranges."""
  import tensorflow as tf

  begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
    shape,
    tf.zeros([1, 0, 4]),
    rng.key(),
    min_object_covered=0.0,
    aspect_ratio_range=ratio,
    area_range=(area[0] / 100, area[1] / 100),
    use_image_if_no_bounding_boxes=True,
  )
  return begin, extent


def _resized(image, size, method, antialias):
  import tensorflow as tf

  resized = tf.image.resize(image, size, method=method, antialias=antialias)
  if image.dtype != tf.uint8 or resized.dtype == tf.uint8:
    return resized
  rounded = tf.round(resized)
  return tf.saturate_cast(rounded, tf.uint8) if method in _OVERSHOOTING else tf.cast(rounded, tf.uint8)


def _resize_side(name, length, method, antialias, side):
  """Resizes so that the `side` (min or max) of the two sides becomes `length`."""
  if isinstance(length, bool) or not isinstance(length, int) or length < 1:
    raise UserError(f"{name} is in pixels, an integer above zero, got {length!r}")
  _check_method(method)

  def per_example(image):
    import tensorflow as tf

    _check_image(image)
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    reference = tf.reduce_min(shape) if side is min else tf.reduce_max(shape)
    size = tf.maximum(1, tf.cast(tf.round(shape * (length / reference)), tf.int32))
    return _resized(image, size, method, antialias)

  return per_example


def _resized_batch(images: ImageBatch, size: tuple[int, int]) -> ImageBatch:
  """Bilinear, half-pixel centres, no antialiasing: the arithmetic of `tf.image.resize`, columns first."""
  values = images.astype(np.float32)
  for axis in (2, 1):
    below, above, share = _neighbours(images.shape[axis], size[axis - 1])
    share = share.reshape((-1,) + (1,) * (3 - axis))
    low = values.take(below, axis)
    values = low + (values.take(above, axis) - low) * share
  return np.rint(values).astype(np.uint8) if images.dtype == np.uint8 else values


def _neighbours(old: int, new: int) -> tuple[Any, Any, Float[np.ndarray, "new"]]:
  """For each of `new` pixels along an axis: the two of `old` it lies between, and the share of the second."""
  centre = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
  below = np.floor(centre)
  return np.maximum(below, 0).astype(int), np.minimum(below + 1, old - 1).astype(int), centre - below
