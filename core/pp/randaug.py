"""RandAugment (Cubuk et al. 2019, "RandAugment: practical automated data augmentation with a reduced search space").

Of sixteen operations each layer applies one, drawn at random, at one magnitude for all. The set, what a magnitude means
to each operation, and the arithmetic on colours, to the last grey level, are those of the TensorFlow implementation
behind the published models (EfficientNet's, in tensorflow/tpu). That is PIL's (ImageOps, ImageEnhance) to within a few
levels, but for two things: what it blends is cut to whole levels where PIL rounds, and contrast knows another middle.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from core.errors import UserError
from core.pp.held import Held
from core.pp.ops_values import as_rows, each_column
from core.pp.registry import OpFunctions, key_op
from core.pp.rng import Rng

MAX_MAGNITUDE = 10.0
GREY = 128  # What geometric operations and cutouts leave behind.

_SMOOTH = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / np.float32(13)


@key_op(random=True)
def randaug(num_layers: Annotated[int, Meta(ge=0, le=64)] = 2, magnitude: Annotated[float, Meta(ge=0, le=1_000)] = 10):
  """Applies `num_layers` random operations to a uint8 image.

  Args:
    num_layers: how many operations, one after the other, at most 64; the same may come twice.
    magnitude: how strongly, usually 0 to 10; up to 1,000 is possible.
  """
  operations = list(operations_at(magnitude).values())

  def accepts(held: Held) -> None:
    if held.dtype != "uint8" or held.rank != 3 or held.shape[2] not in (1, 3) or 0 in held.shape:
      raise UserError(f"wants a uint8 image with 1 or 3 channels, got {held}")

  def per_example(image, rng):
    for layer in range(num_layers):
      image = _one_of(operations, image, rng.fold_in(layer))
    return image

  return OpFunctions(per_example, accepts=accepts)


def operations_at(magnitude: float) -> dict[str, Callable[[Any, Rng], Any]]:
  """Returns by name functions of a uint8 image [height, width, 1 or 3] and a generator, at `magnitude`."""
  level = magnitude / MAX_MAGNITUDE
  enhancement = level * 1.8 + 0.1

  return {
    "AutoContrast": lambda image, rng: autocontrast(image),
    "Equalize": lambda image, rng: equalize(image),
    "Invert": lambda image, rng: 255 - image,
    "Rotate": lambda image, rng: rotate(image, _sign(rng) * math.radians(level * 30)),
    "Posterize": lambda image, rng: posterize(image, int(level * 4)),
    "Solarize": lambda image, rng: solarize(image, int(level * 256)),
    "Color": lambda image, rng: color(image, enhancement),
    "Contrast": lambda image, rng: contrast(image, enhancement),
    "Brightness": lambda image, rng: brightness(image, enhancement),
    "Sharpness": lambda image, rng: sharpness(image, enhancement),
    "ShearX": lambda image, rng: shear_x(image, _sign(rng) * level * 0.3),
    "ShearY": lambda image, rng: shear_y(image, _sign(rng) * level * 0.3),
    "TranslateX": lambda image, rng: translate(image, _sign(rng) * level * 100, 0.0),
    "TranslateY": lambda image, rng: translate(image, 0.0, _sign(rng) * level * 100),
    "Cutout": lambda image, rng: cutout(image, int(level * 40), rng),
    "SolarizeAdd": lambda image, rng: solarize_add(image, int(level * 110)),
  }


def _one_of(operations, image, rng):
  import tensorflow as tf

  # Every branch draws from the same child: only one of them runs.
  branches = [lambda operation=operation: operation(image, rng.fold_in(0)) for operation in operations]
  return tf.ensure_shape(tf.switch_case(rng.integer(0, len(operations)), branches), image.shape)


def _sign(rng):
  """Draws -1.0 or 1.0."""
  import tensorflow as tf

  return tf.cast(rng.integer(0, 2) * 2 - 1, tf.float32)


# Colours. `image` is uint8 [height, width, 1 or 3] from here on.


def autocontrast(image):
  """Stretches each channel so that its darkest value becomes 0 and its brightest 255, or 254 as float32 falls."""
  import tensorflow as tf

  low, high = (tf.cast(reduce(image, axis=[0, 1]), tf.float32) for reduce in (tf.reduce_min, tf.reduce_max))
  flat = low >= high
  scale = tf.where(flat, 1.0, 255.0 / tf.maximum(high - low, 1.0))
  offset = tf.where(flat, 0.0, -low * scale)
  stretched = _to_uint8(tf.cast(as_rows(image), tf.float32) * each_column(scale, image) + each_column(offset, image))
  return tf.reshape(stretched, tf.shape(image))


def equalize(image):
  """Makes each channel's histogram as flat as a map of grey levels can (PIL's ImageOps.equalize)."""
  import tensorflow as tf

  channels = image.shape[2]
  # One histogram, and one table of new values, for all channels: channel c has the slots 256 c to 256 c + 255.
  slots = tf.cast(as_rows(image), tf.int32) + each_column(256 * tf.range(channels), image)
  counts = tf.raw_ops.DenseBincount(
    input=tf.reshape(slots, [-1]), size=256 * channels, weights=tf.zeros([0], tf.int32), binary_output=False
  )
  histogram = tf.reshape(counts, [channels, 256])
  brightest = tf.cast(tf.reduce_max(image, axis=[0, 1]), tf.int32)
  pixels = tf.reduce_sum(histogram, axis=1)
  step = ((pixels - tf.gather(histogram, brightest, batch_dims=1)) // 255)[:, None]
  levels = (tf.cumsum(histogram, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
  table = tf.where(step > 0, tf.minimum(levels, 255), tf.range(256))
  return tf.reshape(tf.gather(tf.reshape(tf.cast(table, tf.uint8), [-1]), slots), tf.shape(image))


def posterize(image, bits):
  """Keeps the upper `bits` bits of each value, at least one and at most all eight."""
  import tensorflow as tf

  dropped = min(max(8 - bits, 0), 7)
  return tf.bitwise.bitwise_and(image, tf.constant(255 >> dropped << dropped, tf.uint8))


def solarize(image, threshold):
  """Inverts the values that are at least `threshold`; 256 and above changes nothing."""
  import tensorflow as tf

  if threshold > 255:
    return image
  # Inverting is flipping all bits: no branch for a processor to mispredict on every other pixel.
  return tf.bitwise.bitwise_xor(image, 255 * tf.cast(image >= threshold, tf.uint8))


def solarize_add(image, addition, threshold=128):
  """Adds `addition` to the values below `threshold`."""
  import tensorflow as tf

  return image + tf.minimum(255 - image, min(addition, 255)) * tf.cast(image < threshold, tf.uint8)


def color(image, factor):
  """Takes the image away from grey: `factor` 0 is grey, 2 twice as colourful. A grey image stays as it is."""
  import tensorflow as tf

  if image.shape[2] == 1:
    return image
  return _blend(tf.image.rgb_to_grayscale(image), image, factor)


def contrast(image, factor):
  """Takes the image away from a grey level: `factor` 0 is a flat image, 1 the image, 2 twice the contrast.

  The level is meant to be the mean, but the published code forgets to weigh the counts of its histogram by their
  levels: it is the number of pixels / 256, at most 255; 196 of an image of 224 x 224.
  """
  import tensorflow as tf

  level = tf.minimum(tf.shape(image)[0] * tf.shape(image)[1] // 256, 255)
  return _blend(level, image, factor)


def brightness(image, factor):
  """Takes the image away from black: `factor` 0 is black, 1 the image, 2 twice as bright."""
  import tensorflow as tf

  return _to_uint8(tf.cast(image, tf.float32) * factor)


def sharpness(image, factor):
  """Takes the image away from a smoothed one: `factor` 0 is smooth, 2 twice as sharp. The outermost pixels stay."""
  import tensorflow as tf

  kernel = np.tile(_SMOOTH[..., None, None], (1, 1, image.shape[2], 1))
  # Of equal pixels it makes at times a level less: 13 thirteenths are 1 but for a rounding error, and the rest is cut.
  smooth = tf.nn.depthwise_conv2d(tf.cast(image, tf.float32)[None], kernel, [1, 1, 1, 1], "VALID")[0]
  inner = _blend(tf.cast(smooth, tf.uint8), image[1:-1, 1:-1], factor)
  rows = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], axis=1)
  return tf.concat([image[:1], rows, image[-1:]], axis=0)


def _blend(degenerate, image, factor):
  """Goes from `degenerate` at factor 0 through `image` at 1 and beyond; what is between two levels is cut."""
  import tensorflow as tf

  degenerate = tf.cast(degenerate, tf.float32)
  return _to_uint8(degenerate + factor * (tf.cast(image, tf.float32) - degenerate))


def _to_uint8(pixels):
  import tensorflow as tf

  return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)


# Geometry: where each pixel of the result comes from, nearest neighbour, grey where that is outside.


def rotate(image, radians):
  """Turns about the centre, counter-clockwise for `radians` above zero."""
  import tensorflow as tf

  sine, cosine = tf.sin(radians), tf.cos(radians)
  shape = tf.cast(tf.shape(image), tf.float32)
  y, x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
  return _transform(image, [cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y])


def shear_x(image, level):
  """Moves row y to the left by `level * y` pixels."""
  return _transform(image, [1.0, level, 0.0, 0.0, 1.0, 0.0])


def shear_y(image, level):
  """Moves column x up by `level * x` pixels."""
  return _transform(image, [1.0, 0.0, 0.0, level, 1.0, 0.0])


def translate(image, right, down):
  """Moves by `right` and `down` pixels."""
  return _transform(image, [1.0, 0.0, -right, 0.0, 1.0, -down])


def cutout(image, half, rng):
  """Greys a square of `2 * half` pixels a side; its centre is anywhere in the image."""
  import tensorflow as tf

  shape = tf.shape(image)
  y, x = rng.integer(0, shape[0]), rng.integer(0, shape[1])
  top, bottom = tf.maximum(y - half, 0), tf.minimum(y + half, shape[0])
  left, right = tf.maximum(x - half, 0), tf.minimum(x + half, shape[1])
  hole = tf.fill([bottom - top, right - left, image.shape[2]], tf.constant(GREY, tf.uint8))
  band = tf.concat([image[top:bottom, :left], hole, image[top:bottom, right:]], axis=1)
  return tf.concat([image[:top], band, image[bottom:]], axis=0)


def _transform(image, matrix):
  """Puts at (x, y) the pixel of `image` at (m0 x + m1 y + m2, m3 x + m4 y + m5).

  A gather of whole pixels: a quarter of the time of TensorFlow's ImageProjectiveTransform.
  """
  import tensorflow as tf

  height, width = tf.shape(image)[0], tf.shape(image)[1]
  x, y = tf.range(tf.cast(width, tf.float32))[None], tf.range(tf.cast(height, tf.float32))[:, None]
  column = tf.cast(tf.floor(matrix[0] * x + (matrix[1] * y + (matrix[2] + 0.5))), tf.int32)
  row = tf.cast(tf.floor(matrix[3] * x + (matrix[4] * y + (matrix[5] + 0.5))), tf.int32)
  inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  nowhere = tf.fill([height, width], height * width)
  pixels = tf.concat(
    [tf.reshape(image, [-1, image.shape[2]]), tf.fill([1, image.shape[2]], tf.constant(GREY, tf.uint8))], 0
  )
  return tf.gather(pixels, tf.where(inside, row * width + column, nowhere))
