"""What a key of the example holds, told alike for one example's tensor and for a batch of arrays.

Ops refuse by it what they are not for, in the same words on both paths, before they compute.
"""

import dataclasses
from typing import Any

import numpy as np

from core.errors import UserError

_INTEGERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_IMAGES = ("uint8", "uint16", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Held:
  """What a key holds in each example.

  Attributes:
    dtype: NumPy's name of the type of numbers; "text" of text and bytes; "a dict".
    shape: the sizes of one example's value, None where tf.data learns a size only when the data come; None as a whole
      where not even their number is known.
  """

  dtype: str
  shape: tuple[int | None, ...] | None

  def __str__(self) -> str:
    if self.shape is None:
      return f"{self.dtype} of unknown shape"
    return f"{self.dtype} [{', '.join('?' if size is None else str(size) for size in self.shape)}]"

  @property
  def rank(self) -> int | None:
    """The number of dimensions, where it is known."""
    return None if self.shape is None else len(self.shape)

  @property
  def is_text(self) -> bool:
    """Whether it is text or bytes."""
    return self.dtype == "text"

  @property
  def is_integer(self) -> bool:
    """Whether it is of whole numbers, or of True and False."""
    return self.dtype in _INTEGERS


def of_example(value: Any) -> Held:
  """Returns what a tensor of one example is."""
  if isinstance(value, dict):
    return Held("a dict", ())
  if not hasattr(value, "dtype"):
    value = np.asarray(value)
  if isinstance(value.shape, tuple):  # An array or a number, which becomes a constant of the graph.
    return of_batch(np.asarray(value)[None])
  shape = None if value.shape.rank is None else tuple(value.shape.as_list())
  return Held("text" if value.dtype.name == "string" else value.dtype.name, shape)


def of_batch(values: Any) -> Held:
  """Returns what an array [batch, ...] is in each example."""
  if isinstance(values, dict):
    return Held("a dict", ())
  array = np.asarray(values)
  return Held("text" if array.dtype.kind in "OSU" else array.dtype.name, array.shape[1:])


def require_image(held: Held) -> None:
  """Refuses what is no image [height, width, channels] of numbers, or one without pixels.

  Raises:
    UserError: it is none.
  """
  if held.rank != 3 or held.dtype not in _IMAGES:
    raise UserError(f"an image is [height, width, channels] of numbers; this is {held}")
  if 0 in held.shape:
    raise UserError(f"an image has pixels; this is {held}")


def require_text(held: Held) -> None:
  """Refuses what is no text.

  Raises:
    UserError: it is none.
  """
  if not held.is_text:
    raise UserError(f"it takes text; the key holds {held.dtype}")


def require_bytes(held: Held) -> None:
  """Refuses what is not the bytes of one file.

  Raises:
    UserError: it is not.
  """
  if not held.is_text or held.shape != ():
    raise UserError(f"it takes the bytes of one image file; the key holds {held}")


def require_numbers(held: Held) -> None:
  """Refuses text, dicts and complex numbers.

  Raises:
    UserError: it is one.
  """
  if held.dtype in ("text", "a dict") or held.dtype.startswith("complex"):
    raise UserError(f"it takes real numbers; the key holds {held.dtype}")


def require_entries(held: Held, key: str) -> None:
  """Refuses a single value, where several stand one after the other.

  Raises:
    UserError: it is one.
  """
  if held.dtype == "a dict" or not held.rank:
    raise UserError(f"{key!r} must hold several entries; it holds {held}")


def holds(dtype: str, value: float) -> bool:
  """Tells whether a type of whole numbers, or of True and False, has a value."""
  least, most = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
  return float(value).is_integer() and least <= value <= most
