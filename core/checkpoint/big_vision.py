"""Checkpoints of big_vision, `WORKDIR/checkpoint.bv`: a folder a step, and in it a zarr array a leaf of the state.

    checkpoint.bv-LAST                         the text `000012345` or `000012345-tmp`: the newest that is whole
    checkpoint.bv-000012345/                   one that is kept; with `-tmp` it goes when the next is whole
      params~Transformer~encoder_norm~bias/    a leaf, `/` in its name written as `~`
        .zarray                                its shape, type and compression
        0                                      a chunk of it
      opt~1~0~1~head~bias/                     of the optimizer: tuples by index (`core.training.big_vision_state`)
      chrono~accum_train_time/                 of its clock, which nothing here reads

JAX's `array_serialization` writes every chunk, one of zeros too: what lacks one is not whole.
"""

import itertools
import math
import os
import re
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from etils import epath

from core import files
from core.errors import UserError, cut, first_few
from core.late import Late

ts = Late("tensorstore")

_SPEC = re.compile(r"(.*[^/]\.bv(?:-\d+(?:-tmp)?)?)/*(?::([^:#&=?]*))?")
_SUFFIX = re.compile(r"\d+(-tmp)?")
_THREADS = 16  # Of a bucket: each array takes some requests, one after the other.
# A run of equal bytes takes zstd's format 4 bytes in 2**17, the most of the compressions in use. What claims more is no
# array of this size: to believe it would end the process, for which no memory is left.
_MOST_COMPRESSED = 2**16


def split(spec: str) -> tuple[str, str] | None:
  """Returns location and subtree of `PATH.bv[-STEP[-tmp]][:SUBTREE]`, or of a local folder that holds such arrays.

  Returns:
    `("runs/checkpoint.bv", "img")`, the subtree empty where none is given; None of any other location.
  """
  if match := _SPEC.fullmatch(spec):
    return match[1], (match[2] or "").strip("/")
  if "://" in spec:
    return None
  for location, subtree in ((spec, ""), spec.rpartition(":")[::2]):
    if location and _holds_params(location):
      return location, subtree.strip("/")
  return None


def settled(spec: str) -> str:
  """Returns a location that names the same checkpoint from now on, where a run may write a newer one meanwhile.

  Raises:
    UserError: there is none that is whole.
  """
  found = split(spec)
  if found is None:
    return spec
  return f"{Checkpoint(found[0]).path}" + (f":{found[1]}" if found[1] else "")


def _holds_params(folder: str) -> bool:
  path = files.from_here(folder)
  try:
    return os.path.isdir(path) and any(each.name.startswith("params~") for each in files.inside(path))
  except OSError:  # Whoever reads it says so.
    return False


class Checkpoint:
  """One checkpoint, whose arrays are read when they are called for. Iterating gives their names, `params/head/bias`.

  Args:
    location: of the folder; or PATH.bv, for the newest that is whole.

  Attributes:
    path: the folder.

  Raises:
    UserError: there is none, or it holds no parameters.
  """

  def __init__(self, location: str):
    try:
      self.path = _resolve(files.from_here(location))
      self._names = [path.name.replace("~", "/") for path in files.inside(self.path) if "~" in path.name]
    except OSError as error:
      raise UserError(f"{location}: cannot be read ({files.reason(error)})") from None
    if not self._names:
      raise UserError(f"{self.path}: no such checkpoint of big_vision{_there(self.path)}")
    if not any(name.startswith("params/") for name in self._names):
      raise UserError(f"{self.path}: holds no parameters: big_vision keeps each in a folder params~NAME")

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
    """Returns arrays by name.

    Raises:
      UserError: one of them is not whole; the line names it.
    """
    with ThreadPoolExecutor(_THREADS if files.is_remote(self.path) else 1) as pool:
      return dict(zip(names, pool.map(self._array, names), strict=True))

  def _array(self, name: str) -> np.ndarray:
    leaf = self.path / name.replace("/", "~")
    try:
      return _decode({str(path.relative_to(leaf)): files.read_bytes(path) or b"" for path in files.below(leaf)})
    except OSError as error:
      reason = files.reason(error)
    except MemoryError:
      reason = "too large for this machine's memory, or damaged"
    except ValueError as error:  # What TensorStore raises, whatever it is.
      reason = re.sub(r"^[A-Z_]+: | \[(tensorstore_spec|source locations)=.*", "", " ".join(str(error).split()))
    raise UserError(f"{self.path}: {name} is not whole or cannot be read: {cut(reason, 150)}") from None


def _resolve(path: Path | epath.Path) -> Path | epath.Path:
  """Returns the folder that a path names, of several steps the newest that is whole.

  Raises:
    UserError: none is whole.
  """
  if not path.name.endswith(".bv"):
    return path
  last = path.with_name(f"{path.name}-LAST")
  written = files.read_bytes(last)
  if written is None:
    if files.inside(path):  # It was renamed.
      return path
    raise UserError(f"{last}: no such file, which big_vision writes when a checkpoint is whole{_there(path)}")
  suffix = written.decode(errors="replace").strip()
  if not _SUFFIX.fullmatch(suffix):
    raise UserError(f"{last}: must hold the step of a checkpoint, 000012345 or 000012345-tmp, got {suffix[:40]!r}")
  return path.with_name(f"{path.name}-{suffix}")


def _there(path: Path | epath.Path) -> str:
  """Ends an error line with the checkpoints that lie where none was found, if there are any."""
  stem = re.sub(r"-\d+(-tmp)?$", "", path.name)
  try:
    names = [each.name for each in files.inside(path.parent)]
  except OSError:
    return ""
  there = [name for name in names if name.startswith(f"{stem}-") and _SUFFIX.fullmatch(name.removeprefix(f"{stem}-"))]
  return f"; there are {first_few(there)}" if there else ""


def _decode(held: dict[str, bytes]) -> np.ndarray:
  """Returns the array of a folder's files by their names in it.

  Raises:
    ValueError: they are not what JAX writes, or not all of it.
    MemoryError: the array is too large.
  """
  if ".zarray" not in held:
    raise ValueError("it has no .zarray")
  context = ts.Context()
  store = ts.KvStore.open("memory://", context=context).result()
  for name, content in held.items():
    store.write(name, content).result()
  array = ts.open({"driver": "zarr", "kvstore": "memory://"}, open=True, context=context).result()
  _check_chunks(array, held)
  return array.read().result()


def _check_chunks(array: "ts.TensorStore", held: dict[str, bytes]) -> None:
  """Refuses an array that lacks a chunk, for which zarr would give zeros, or that claims to be larger than it can be.

  Raises:
    ValueError, MemoryError: it is so.
  """
  chunk = array.chunk_layout.read_chunk.shape or ()  # None of a number.
  if not all(chunk):
    raise ValueError(f"its type {array.dtype.name} is of no size")
  grid = [-(-size // step) for size, step in zip(array.shape, chunk)]
  if (count := math.prod(grid)) >= len(held):  # One of them is .zarray.
    raise ValueError(f"it has {len(held) - 1} of its {count} chunks")
  itemsize = array.dtype.numpy_dtype.itemsize
  separator = array.spec().to_json()["metadata"]["dimension_separator"]
  for place in itertools.product(*map(range, grid)):
    name = separator.join(map(str, place)) or "0"
    if name not in held:
      raise ValueError(f"its chunk {name} is missing")
    if math.prod(chunk) * itemsize > len(held[name]) * _MOST_COMPRESSED:
      raise ValueError(f"its chunk {name} of {len(held[name])} bytes cannot hold {list(chunk)} numbers")
  # Raises MemoryError, where TensorStore would end the process.
  np.empty(math.prod(array.shape) * itemsize, np.uint8)
