"""What timm and transformers must do to an image file for a model, read from a pp string.

Both resize with PIL's kernels, which widen when they shrink, cut the middle out, and map grey levels linearly. What of
a pp string they have no like for is refused; where they come close it is said in a line.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from core.errors import UserError
from core.pp import arguments, builder, registry
from core.pp.ops_values import CLIP_MEAN, CLIP_STD

# Of `tf.image.resize` to PIL: its name in timm, its number in transformers.
_METHODS = {
  "nearest": ("nearest", 0),
  "bilinear": ("bilinear", 2),
  "bicubic": ("bicubic", 3),
  "lanczos3": ("lanczos", 1),
}
# The nearest that there is: off by 2 to 5 grey levels where images shrink to between 8/9 and 1/4 (PIL's box by up to
# 15). transformers' own hamming and box (5, 4) fail in 5.24, whose torch resizes by neither.
_METHODS["area"] = ("hamming", 2)
_SIZED = ("resize", "inception_crop", "decode_jpeg_and_inception_crop", "random_crop", "central_crop")
_RANDOM_BOXES = ("inception_crop", "decode_jpeg_and_inception_crop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
  """What is done to an image file, one after the other; sizes are in pixels.

  Attributes:
    shorter: what the shorter side is resized to, keeping the aspect; None where `resized` says both sides.
    resized: (height, width) that the image is resized to, whatever its aspect.
    size: (height, width) of the box in the middle that is cut out last, and that the model gets.
    method: of resizing, as `tf.image.resize` names it.
    mean: what is taken away of values in [0, 1], a number a channel.
    std: what is divided by then, a number a channel.
    notes: what differs in the libraries, a line each.
  """

  shorter: int | None = None
  resized: tuple[int, int] | None = None
  size: tuple[int, int]
  method: str = "bilinear"
  mean: tuple[float, ...] = (0.0,) * 3
  std: tuple[float, ...] = (1 / 255,) * 3
  notes: tuple[str, ...] = ()

  @property
  def value_range(self) -> tuple[float, float] | None:
    """What black and white become; None where it is not the same for all channels."""
    if len({*self.mean}) > 1 or len({*self.std}) > 1:
      return None
    return round(-self.mean[0] / self.std[0], 6) + 0.0, round((1 - self.mean[0]) / self.std[0], 6)


def size_of(pp: str, where: str) -> tuple[int, int] | None:
  """Returns (height, width) of the images that a pp string leaves; None where those of the data tell.

  Raises:
    UserError: the string cannot be read, or an op's arguments do not fit.
  """
  size, shorter = None, None
  for name, given in _on_images(pp, where):
    stated = given.get("size" if name != "central_crop" else "crop_size", given.get("crop_size"))
    if name in _SIZED and stated is not None:
      size, shorter = _sides(stated), None
    elif name in _RANDOM_BOXES or name == "resize_long":
      size = shorter = None
    elif name == "resize_small":
      ratio = max(size) / min(size) if size else None
      shorter = given["smaller_size"]
      size = None if ratio is None else tuple(shorter if side == min(size) else round(shorter * ratio) for side in size)
    elif name == "central_crop":
      side = min(size) if size else shorter
      size = (side, side) if side else None
    elif name == "pad" and size:
      margins = _sides(given["size"])
      size = (size[0] + 2 * margins[0], size[1] + 2 * margins[1])
  return size


def text_length_of(pp: str, where: str) -> int | None:
  """Returns the number of tokens of the texts that a pp string leaves; None where it makes none.

  Raises:
    UserError: as `size_of`.
  """
  lengths = [given for name, given in bound(pp, where) if name in ("tokenize", "bert_tokenize")]
  return next((each for each in lengths[-1].values() if isinstance(each, int)), None) if lengths else None


def bound(pp: str, where: str) -> list[tuple[str, dict[str, Any]]]:
  """Returns the ops of a pp string that are known, by name, with all their arguments; none of them is made.

  Raises:
    UserError: as `size_of`.
  """
  found = []
  for call in builder.parse(pp, where):
    if call.name in registry.OPS:  # A project's own ops are on texts and labels.
      op = registry.OPS[call.name]
      made = arguments.bind(op.signature, op.annotations, call.args, call.kwargs, f"{where}: pp op {call.name}")
      made.apply_defaults()
      found.append((call.name, dict(made.arguments)))
  return found


def read(pp: str, where: str, size: tuple[int, int]) -> Preprocessing:
  """Returns what a pp string does to an image file for a model of images of `size`, (height, width).

  Where it resizes to another size, this one takes its place, and what is cut off stays in proportion. Where it does not
  resize at all its data are arrays; a file is then resized, as `tools:embed` does it.

  Raises:
    UserError: the string cannot be read, or has an op for which the libraries have no like.
  """
  ops = _on_images(pp, where)
  scale, offset = _linear(ops, where)
  shorter, resized, cropped, method, antialias = _geometry(ops, where)
  notes = []
  if at_random := [name for name, _ in ops if registry.OPS[name].random]:
    notes.append(
      f"{where} draws at random ({', '.join(at_random)}); the one written takes the whole image, or its middle"
    )
  if not (shorter or resized):
    notes.append(f"{where} does not resize; the one written resizes to {size[0]} x {size[1]}")
    resized, cropped, method, antialias = size, size, "bilinear", True
  factors = [new / old for new, old in zip(size, cropped or resized)]
  return Preprocessing(
    shorter=shorter and round(shorter * factors[0]),
    resized=resized and (round(resized[0] * factors[0]), round(resized[1] * factors[1])),
    size=size,
    method=method,
    mean=tuple(float(f"{each:.12g}") + 0.0 for each in -offset / scale / 255),
    std=tuple(float(f"{each:.12g}") for each in 1 / scale / 255),
    notes=(*notes, *_on_method(method, antialias, where)),
  )


def _geometry(ops: list[tuple[str, dict[str, Any]]], where: str) -> tuple[Any, Any, Any, str, bool]:
  """Returns what the shorter side becomes, what both become, what is cut out; and of the resizing method, antialias."""
  shorter = resized = cropped = None
  method, antialias = "bilinear", True
  for name, given in ops:
    if name in ("resize", *_RANDOM_BOXES) and given["size"] and not cropped:
      shorter, resized = None, _sides(given["size"])
      method, antialias = given["method"], given["antialias"]
    elif name == "resize_small" and not (resized or cropped):
      shorter, method, antialias = given["smaller_size"], given["method"], given["antialias"]
    elif name in ("central_crop", "random_crop") and (shorter or resized):
      cropped = _sides(given["crop_size"] or shorter or min(resized))
    elif name in ("resize", "resize_small", "resize_long", "central_crop", *_RANDOM_BOXES):
      raise _without_like(name, where)
  if shorter and not cropped:
    raise UserError(f"{where}: leaves images of any shape; --pp_img=... states another preprocessing")
  return shorter, resized, cropped, method, antialias


def _linear(ops: list[tuple[str, dict[str, Any]]], where: str) -> tuple[Any, Any]:
  """Returns what grey levels are multiplied by, and what is added then, a number a channel."""
  scale, offset = np.ones(3), np.zeros(3)
  names = [name for name, _ in ops]
  for name, given in ops:
    if name in ("value_range", "vgg_value_range", "clip_value_range"):
      slope, intercept = _values(name, given, where)
      scale, offset = scale * slope, offset * slope + intercept
      continue
    known = name in (*_SIZED, "resize_small", "resize_long") or registry.OPS[name].random
    # A margin is for moving the image about.
    if not (known or (name == "decode" and given["channels"] == 3) or (name == "pad" and "random_crop" in names)):
      raise _without_like(name, where)
  return scale, offset


def _without_like(name: str, where: str) -> UserError:
  return UserError(f"{where}: {name} there has no like in other libraries; --pp_img=... states another preprocessing")


def timm(made: Preprocessing, where: str) -> dict[str, Any]:
  """Returns the entries of timm's `pretrained_cfg` that its `create_transform` reads.

  Raises:
    UserError: timm has no like; `where` begins the line.
  """
  base = made.resized or (made.shorter, made.shorter)
  if made.shorter and made.size[0] != made.size[1]:
    raise UserError(
      f"{where}: timm cuts no box of {made.size[0]} x {made.size[1]} out of an image whose aspect is kept"
    )
  # timm divides the size by it and rounds down.
  shares = [each for side, whole in zip(made.size, base) for each in (side / whole, side / (whole + 0.5))]
  fits = [share for share in shares if all(math.floor(side / share) == whole for side, whole in zip(made.size, base))]
  if not fits:
    raise UserError(f"{where}: timm cuts the same share off both sides, not {base} to {made.size}")
  return {
    "crop_pct": fits[0],
    "crop_mode": "squash" if made.resized else "center",
    "interpolation": _METHODS[made.method][0],
    "mean": list(made.mean),
    "std": list(made.std),
  }


def transformers(made: Preprocessing, kind: str) -> dict[str, Any]:
  """Returns the contents of transformers' `preprocessor_config.json`, for a model of that `model_type`."""
  crops = made.shorter is not None or made.resized != made.size
  own = {"vit": "ViTImageProcessor", "siglip": "SiglipImageProcessor", "siglip_vision_model": "SiglipImageProcessor"}
  # BiT's is the plainest of those that cut something out.
  processor = own.get(kind, "BitImageProcessor") if not crops else "BitImageProcessor"
  height, width = made.resized or (0, 0)
  return {
    "image_processor_type": processor,
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": made.shorter} if made.shorter else {"height": height, "width": width},
    "resample": _METHODS[made.method][1],
    "do_center_crop": crops,
    "crop_size": {"height": made.size[0], "width": made.size[1]},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(made.mean),
    "image_std": list(made.std),
  }


def _on_images(pp: str, where: str) -> list[tuple[str, dict[str, Any]]]:
  """Returns the ops of a pp string that write "image"."""
  return [(name, given) for name, given in bound(pp, where) if _writes(given) == "image"]


def _writes(given: dict[str, Any]) -> Any:
  return given.get("outkey") or given.get("key") or given.get("new") or given.get("key_result")


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)


def _values(name: str, given: dict[str, Any], where: str) -> tuple[Any, Any]:
  """Returns what an op multiplies grey levels by, and what it adds then."""
  if name == "clip_value_range":
    given = dict(mean=CLIP_MEAN, std=CLIP_STD)
  if name != "value_range":
    mean, std = np.float64(given["mean"]), np.float64(given["std"])
    if mean.size not in (1, 3) or std.size not in (1, 3):
      raise UserError(f"{where}: {name} there is not of 3 channels")
    return 1 / std, -mean / std
  low, high, first, last = (np.float64(given[each]) for each in ("vmin", "vmax", "in_min", "in_max"))
  if first.size not in (1, 3) or last.size not in (1, 3):
    raise UserError(f"{where}: {name} there is not of 3 channels")
  if low == high or (given["clip_values"] and not ((first <= 0) & (last >= 255)).all()):
    raise UserError(f"{where}: {name} there maps several grey levels to one, which no other library does")
  slope = (high - low) / (last - first)
  return slope, low - first * slope


def _on_method(method: str, antialias: bool, where: str) -> list[str]:
  if method not in _METHODS:
    raise UserError(f"{where}: resizes by {method!r}, which no other library does; --pp_img=... states another")
  if method == "area":
    near = "timm's hamming and transformers' bilinear, written for it, come near where images shrink"
    return [f"{where} averages areas; {near}"]
  if not antialias and method != "nearest":
    return [f"{where} resizes without antialias, the libraries with it; images that shrink come out smoother there"]
  return []
