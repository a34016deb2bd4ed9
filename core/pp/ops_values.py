"""pp ops that mirror and pad images and map their values.

An image is [height, width, channels], uint8 in [0, 255] as decoded. Where an op has a form for batches it is on
[batch, height, width, channels].
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float32 as Float32Array
from jaxtyping import Shaped

from core.errors import UserError
from core.pp.arguments import Float32, Margin, PositiveFloat32
from core.pp.held import Held, holds, require_image, require_numbers
from core.pp.registry import OpFunctions, key_op
from core.pp.rng import Rng

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
# Of the images that CLIP was trained on (Radford et al. 2021).
CLIP_MEAN = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)

ImageBatch = Shaped[np.ndarray, "batch height width channels"]


@key_op(random=True)
def flip_lr():
  """Mirrors left to right, one time in two."""

  def per_example(image, rng):
    import tensorflow as tf

    # A conditional: a reversal costs more than it, and half the images need none.
    return tf.cond(rng.integer(0, 2) == 1, lambda: tf.reverse(image, [1]), lambda: image)

  def batched(images: ImageBatch, rng: Rng) -> ImageBatch:
    return np.where((rng.integer(0, 2) == 1)[:, None, None, None], images[:, :, ::-1], images)

  return OpFunctions(per_example, batched, require_image)


@key_op()
def pad(
  size: Margin | tuple[Margin, Margin],
  mode: Literal["constant", "reflect", "symmetric"] = "constant",
  value: Float32 = 0,
):
  """Adds `size` pixels on every side: `pad(4)|random_crop(32)` is the usual augmentation of CIFAR.

  Args:
    size: pixels on each side, an integer from 0 on or (above and below, left and right).
    mode: "constant", "reflect" (the edge not repeated) or "symmetric" (the edge repeated).
    value: what constant padding is filled with; of integer images a whole number that their type holds.
  """
  rows, columns = (size, size) if isinstance(size, int) else size
  amounts = [[rows, rows], [columns, columns], [0, 0]]
  if value and mode != "constant":
    raise UserError(f"value has no meaning with mode={mode!r}; leave it out")

  def accepts(held: Held) -> None:
    require_image(held)
    if held.is_integer and not holds(held.dtype, value):
      raise UserError(f"value {value!r} is none of {held.dtype}, the type of the image")
    most = {"constant": None, "reflect": -1, "symmetric": 0}[mode]
    for side, amount in zip(held.shape, (rows, columns)):
      if most is not None and side is not None and amount > side + most:
        raise UserError(f"mode {mode!r} has no {amount} pixels to repeat; the image is {held}")

  def per_example(image):
    import tensorflow as tf

    return tf.pad(image, amounts, mode.upper(), constant_values=image.dtype.as_numpy_dtype(value))

  def batched(images: ImageBatch) -> ImageBatch:
    fill = dict(constant_values=images.dtype.type(value)) if mode == "constant" else {}
    return np.pad(images, [[0, 0], *amounts], mode, **fill)

  return OpFunctions(per_example, batched, accepts)


@key_op()
def value_range(
  vmin: Float32 = -1,
  vmax: Float32 = 1,
  in_min: Float32 | tuple[Float32, ...] = 0,
  in_max: Float32 | tuple[Float32, ...] = 255,
  clip_values: bool = False,
):
  """Maps values linearly from [in_min, in_max] to [vmin, vmax], as float32.

  Args:
    vmin: what `in_min` becomes.
    vmax: what `in_max` becomes.
    in_min: least value expected; a number, or one for each channel.
    in_max: greatest value expected; a number, or one for each channel.
    clip_values: hold values beyond the expected range at vmin and vmax.
  """
  counts = {len(each) for each in (in_min, in_max) if isinstance(each, tuple)}
  if len(counts) > 1 or 0 in counts:
    raise UserError(f"in_min and in_max are a number or one a channel, got {in_min!r} and {in_max!r}")
  first, last = np.float64(in_min), np.float64(in_max)
  if (first == last).any():
    raise UserError(
      f"in_min and in_max are both {in_min!r}" if not counts else "in_min and in_max are alike in a channel"
    )
  slope = (vmax - vmin) / (last - first)
  intercept = vmin - first * slope
  if not (np.abs([slope, intercept]) <= float(np.finfo(np.float32).max)).all():
    raise UserError(f"in_min, {in_min!r}, and in_max, {in_max!r}, are too close to each other")
  return _linear(slope, intercept, "in_min and in_max", sorted((vmin, vmax)) if clip_values else None)


@key_op()
def vgg_value_range(
  mean: Float32 | tuple[Float32, ...] = IMAGENET_MEAN,
  std: PositiveFloat32 | tuple[PositiveFloat32, ...] = IMAGENET_STD,
):
  """Takes the mean away and divides by the standard deviation, for each channel; by default those of ImageNet.

  Args:
    mean: grey levels; a number, or one for each channel.
    std: grey levels above 0; a number, or one for each channel.
  """
  counts = {len(each) for each in (mean, std) if isinstance(each, tuple)}
  if len(counts) > 1 or 0 in counts:
    raise UserError(f"mean and std are a number or one a channel, got {mean!r} and {std!r}")
  mean, std = np.float32(mean), np.float32(std)
  return _linear(1 / std, -mean / std, "mean and std")


@key_op()
def clip_value_range():
  """Takes the mean of CLIP's images away and divides by their standard deviation, for each channel.

  The sharper name of `vgg_value_range` with these numbers. It clips nothing.
  """
  return vgg_value_range(CLIP_MEAN, CLIP_STD)


def _linear(scale: Any, offset: Any, arguments: str, bounds: list[float] | None = None) -> OpFunctions:
  """Returns the forms of `value * scale + offset`, in float32.

  Args:
    scale: a number, or one a channel.
    offset: likewise.
    arguments: what an image of other channels does not fit, for the message.
    bounds: least and greatest value of what comes out.
  """
  scale, offset = np.broadcast_arrays(np.float32(scale), np.float32(offset))

  def accepts(held: Held) -> None:
    if not scale.ndim:
      require_numbers(held)
      return
    require_image(held)
    if held.shape[-1] not in (scale.size, None):
      raise UserError(f"{arguments} are of {scale.size} channels; the image is {held}")

  def per_example(image):
    import tensorflow as tf

    if not scale.ndim:
      values = tf.cast(image, tf.float32) * scale + offset
    else:
      values = tf.cast(as_rows(image), tf.float32) * each_column(scale, image) + each_column(offset, image)
      values = tf.ensure_shape(tf.reshape(values, tf.shape(image)), image.shape)
    return tf.clip_by_value(values, *bounds) if bounds else values

  def batched(images: Shaped[np.ndarray, "batch ..."]) -> Float32Array[np.ndarray, "batch ..."]:
    values = images.astype(np.float32) * scale + offset
    return np.clip(values, *bounds) if bounds else values

  return OpFunctions(per_example, batched, accepts)


def as_rows(image: Any) -> Any:
  """Returns the image as [height, width * channels].

  TensorFlow broadcasts a row over this many times faster than a colour over pixels.
  """
  import tensorflow as tf

  return tf.reshape(image, [tf.shape(image)[0], -1])


def each_column(by_channel: Any, image: Any) -> Any:
  """Returns a value a channel, repeated for each column of `as_rows(image)`."""
  import tensorflow as tf

  return tf.tile(by_channel, [tf.shape(image)[1]])
