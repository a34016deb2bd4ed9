"""State dicts of PyTorch's world, `{"blocks.0.norm1.bias": array}`, read without PyTorch and without running code."""

import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from core.errors import UserError

SUFFIXES = (".safetensors",)
Arrays = dict[str, np.ndarray]


def is_one(location: str) -> bool:
  """Whether the name is that of such a file, or a local folder that holds one as libraries save models."""
  return location.endswith(SUFFIXES) or Path(location).is_dir()


def read(location: str) -> Arrays:
  """The arrays of a file, in the types they are stored in.

  Raises:
    UserError: no such file, or a damaged one.
  """
  try:
    return safetensors.numpy.load_file(location)
  except FileNotFoundError:
    raise UserError(f"{location}: no such file") from None
  except (safetensors.SafetensorError, json.JSONDecodeError) as error:
    raise UserError(f"{location}: a damaged .safetensors file ({error})") from None
