"""Files of `torch.save`, read without PyTorch and without running code.

Such a file is a pickle, whose tensors name the storages that hold their numbers. A pickle can call any function of any
package by name; here it gets stand-ins for the few that rebuild tensors, and is refused when it names any other. Of the
three forms the file has had, two are read: the zip archive of today (`data.pkl`, `data/0`, ...) and the one before
(since 2016; a row of pickles, then the storages). Numbers are read when they are called for.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from core.errors import UserError

_DTYPES = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
_MAGIC = 0x1950A86A20F9469CFC6C  # The first pickle of the older form; the second is the version.
_VERSION = 1001
# What the readers of pickles and zip archives raise when they are fed other bytes.
_NONSENSE = (
  *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, AttributeError),
  *(TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError),
)


def read(path: Path) -> dict[Any, Any]:
  """Returns what was saved, with a function that gives an array in the place of each tensor.

  Raises:
    UserError: no such file, another one than `torch.save`'s, a damaged one, or one that names what could run code.
  """
  with _damage_in_one_line(path), path.open("rb") as file:
    start = file.read(512)
    file.seek(0)
    content = _read_zip(file, path) if start.startswith(b"PK") else _read_legacy(file, path, start)
  if not isinstance(content, dict):
    raise UserError(f"{path}: holds a {type(content).__name__.lstrip('_')}, not the arrays of a model by name")
  return content


@contextlib.contextmanager
def _damage_in_one_line(path: Path) -> Iterator[None]:
  try:
    yield
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
  except _NONSENSE as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"{path}: damaged, or not a file of torch.save ({reason})") from None


@dataclasses.dataclass(frozen=True)
class _Storage:
  """A row of numbers in a file: `load()` gives its bytes."""

  path: Path
  dtype: np.dtype
  count: int
  load: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class _Tensor:
  """A view of a storage. Called, it reads its numbers."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def __post_init__(self) -> None:
    reach = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)) + 1
    if min((*self.shape, *self.strides, self.offset), default=0) < 0 or (
      math.prod(self.shape) and reach > self.storage.count
    ):
      raise ValueError("a tensor reaches beyond its storage")

  def __call__(self) -> np.ndarray:
    if not math.prod(self.shape):
      return np.zeros(self.shape, self.storage.dtype)
    with _damage_in_one_line(self.storage.path):
      numbers = np.frombuffer(self.storage.load(), self.storage.dtype, self.storage.count)[self.offset :]
    strides = tuple(stride * numbers.itemsize for stride in self.strides)
    return np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)


class _Inert:
  """Stands in for an object without arrays (the run's options, say): takes anything, does nothing."""

  def __init__(self, *_: Any) -> None:
    pass

  def __setstate__(self, state: Any) -> None:
    pass


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> _Tensor:
  return _Tensor(storage, offset, tuple(size), tuple(stride))


# All that a pickle may name.
_KNOWN = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
  ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
  ("torch", "Size"): tuple,
  ("torch", "device"): _Inert,
  ("argparse", "Namespace"): _Inert,
  ("numpy", "dtype"): _Inert,
  ("numpy.core.multiarray", "scalar"): _Inert,
  ("numpy._core.multiarray", "scalar"): _Inert,
  ("_codecs", "encode"): _Inert,
} | {("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()}


class _Unpickler(pickle.Unpickler):
  def __init__(self, file: IO[bytes], path: Path, storage: Callable[..., _Storage] | None = None) -> None:
    super().__init__(file, encoding="latin1")  # Files of Python 2 hold their strings as bytes.
    self._path, self._storage = path, storage

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _KNOWN:
      raise UserError(
        f"{self._path}: names {module}.{name}, whose reading could run code; "
        "save the model's state_dict alone, as .safetensors at best"
      )
    return _KNOWN[module, name]

  def persistent_load(self, saved_id: Any) -> _Storage:
    kind, dtype, key, _, count, *view = saved_id
    if kind != "storage" or self._storage is None or not isinstance(dtype, np.dtype) or any(view):
      raise pickle.UnpicklingError(f"a reference to {kind!r}")
    return self._storage(dtype, key, count)


def _read_zip(file: IO[bytes], path: Path) -> Any:
  archive = zipfile.ZipFile(file)
  entries = archive.namelist()
  pickles = [name for name in entries if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise UserError(f"{path}: a zip archive, but not of torch.save (no data.pkl in it)")
  root = pickles[0].removesuffix("data.pkl")
  if f"{root}constants.pkl" in entries:
    raise UserError(f"{path}: a TorchScript program, not a state dict; save model.state_dict() instead")
  if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
    raise UserError(f"{path}: written by a big-endian machine, which is not read here")

  # Tensors that share a storage mostly come one after the other.
  load = functools.lru_cache(maxsize=1)(functools.partial(_zip_entry, path))

  def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
    entry = f"{root}data/{key}"
    if archive.getinfo(entry).file_size < count * dtype.itemsize:
      raise EOFError(f"{entry} is too short")
    return _Storage(path, dtype, count, lambda: load(entry))

  with archive.open(pickles[0]) as data:
    return _Unpickler(data, path, storage).load()


def _zip_entry(path: Path, entry: str) -> bytes:
  with zipfile.ZipFile(path) as archive:
    return archive.read(entry)


def _read_legacy(file: IO[bytes], path: Path, start: bytes) -> Any:
  if start[257:262] == b"ustar":
    raise UserError(f"{path}: a tar archive (PyTorch's form until 2016?); load and save it with a PyTorch of today")
  if not start.startswith(b"\x80"):
    raise UserError(f"{path}: not a file of torch.save, or a truncated one")
  if _Unpickler(file, path).load() != _MAGIC or _Unpickler(file, path).load() != _VERSION:
    raise UserError(f"{path}: a pickle, but not of torch.save")
  _Unpickler(file, path).load()  # The machine's byte order and sizes: all are little-endian in practice.
  places: dict[str, int] = {}  # Filled in below: the storages come after the pickle that names them.
  storages: dict[str, _Storage] = {}
  load = functools.lru_cache(maxsize=1)(functools.partial(_slice, path))

  def storage(dtype: np.dtype, key: str, count: int) -> _Storage:
    storages[key] = _Storage(path, dtype, count, lambda: load(places[key], count * dtype.itemsize))
    return storages[key]

  content = _Unpickler(file, path, storage).load()
  size = path.stat().st_size
  for key in _Unpickler(file, path).load():
    (count,) = struct.unpack("<q", file.read(8))
    places[key] = file.tell()
    if count != storages[key].count or count * storages[key].dtype.itemsize > size - places[key]:
      raise EOFError("it ends too early")
    file.seek(count * storages[key].dtype.itemsize, 1)
  return content


def _slice(path: Path, start: int, size: int) -> bytes:
  with path.open("rb") as file:
    file.seek(start)
    return file.read(size)
