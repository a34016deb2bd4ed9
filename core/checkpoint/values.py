"""What the arrays of weights may hold, whatever the file: finite real numbers that float32 has."""

import os

import numpy as np
from jaxtyping import Shaped

from core.errors import UserError


class UnreadError(Exception):
  """An array is of a kind that is not read; its text is that kind: "a sparse tensor"."""


def check(array: Shaped[np.ndarray, "..."], name: str, where: str | os.PathLike) -> Shaped[np.ndarray, "..."]:
  """Returns an array of weights, in this machine's byte order, if a model can hold its numbers.

  Args:
    array: of any type.
    name: of the array, for the error.
    where: the file, which begins the error.

  Raises:
    UserError: no numbers; complex ones; NaN or infinite ones; ones beyond float32, in which models compute.
  """
  kind = array.dtype.kind
  if array.dtype.isbuiltin == 2:  # Not NumPy's own, but of ml_dtypes: bfloat16, float8, int4, ...
    kind = "i" if "int" in array.dtype.name else "f"
  if kind == "c":
    raise UserError(f"{where}: {name} holds complex numbers ({array.dtype}); weights are real")
  if kind not in "biuf":
    raise UserError(f"{where}: holds no parameters: {name} is an array of {array.dtype}, not of numbers")
  if kind == "f":
    _check_finite(array, name, where)
  # Of a foreign byte order JAX takes none.
  return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_finite(array: np.ndarray, name: str, where: str | os.PathLike) -> None:
  if not (finite := np.isfinite(array)).all():
    words = "NaN" if np.isnan(array).any() else "infinite numbers"
    count = np.count_nonzero(~finite)
    raise UserError(f"{where}: {name} holds {words} ({count:,} of {array.size:,} numbers are not finite)")
  if array.itemsize > 4:
    with np.errstate(over="ignore"):
      fits = np.isfinite(array.astype(np.float32))
    if not fits.all():
      raise UserError(f"{where}: {name} holds numbers beyond float32, as {array[~fits].flat[0]:.3g}")
