"""Files of `torch.save`, read without PyTorch and without running code.

Such a file is a pickle, whose tensors name the storages that hold their numbers. A pickle can call any function of any
package by name; here it gets stand-ins (`core.checkpoint.torch_stand_ins`), and is refused when it names any other. Of
the three forms the file has had, two are read: the zip archive of today (`data.pkl`, `data/0`, ...) and the one before
(since 2016; a row of pickles, then the storages). Numbers are read when they are called for.
"""

import collections
import functools
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.checkpoint.torch_stand_ins import KNOWN, Dtype, Storage, damage_in_one_line
from core.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C  # The first pickle of the older form; the second is the version.
_VERSION = 1001


def read(path: Path) -> dict[Any, Any]:
  """Returns what was saved, with what has a method `read`, which gives an array, in the place of each tensor.

  Raises:
    UserError: no such file, another one than `torch.save`'s, a damaged one, or one that names what could run code.
  """
  with damage_in_one_line(path), path.open("rb") as file:
    start = file.read(512)
    file.seek(0)
    content = _read_zip(file, path) if start.startswith(b"PK") else _read_legacy(file, path, start)
  if not isinstance(content, dict):
    raise UserError(f"{path}: holds a {type(content).__name__}, not the arrays of a model by name")
  return content


class _Within:
  """A file as `pickletools` reads it, of which no more is asked for than it has: the room for that is made first."""

  def __init__(self, file: IO[bytes], size: int) -> None:
    self._file, self._size, self.readline = file, size, file.readline

  def read(self, count: int) -> bytes:
    return self._file.read(min(count, self._size))


def _refuse_wide(file: IO[bytes]) -> None:
  """Refuses a pickle that keeps an object under a larger number than it has objects, or says to be longer than it is.

  Python makes room for as many objects as the largest number says. The file stays where it was.
  """
  start = file.tell()
  size = file.seek(0, os.SEEK_END) - start
  file.seek(start)
  for number, (opcode, argument, _) in enumerate(pickletools.genops(_Within(file, size))):
    if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > number:
      raise pickle.UnpicklingError(f"object {number:,} is kept under the number {argument:,}")
    if opcode.name == "FRAME" and argument > size:
      raise pickle.UnpicklingError(f"a frame of {argument:,} bytes in a file of {size:,}")
  file.seek(start)


class _Unpickler(pickle.Unpickler):
  def __init__(self, file: IO[bytes], path: Path, storage: Callable[..., Storage] | None = None) -> None:
    _refuse_wide(file)
    super().__init__(file, encoding="latin1")  # Files of Python 2 hold their strings as bytes.
    self._path, self._storage = path, storage

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in KNOWN:
      raise UserError(
        f"{self._path}: names {module}.{name}, whose reading could run code; "
        "save the model's state_dict alone, as .safetensors at best"
      )
    return KNOWN[module, name]

  def persistent_load(self, saved_id: Any) -> Storage:
    kind, dtype, key, _, count, *view = saved_id
    if kind != "storage" or self._storage is None or not isinstance(dtype, Dtype) or any(view):
      raise pickle.UnpicklingError(f"a reference to {kind!r}")
    return self._storage(dtype.numpy, key, count)


def _read_zip(file: IO[bytes], path: Path) -> Any:
  archive = zipfile.ZipFile(file)
  entries = archive.namelist()
  pickles = [name for name in entries if name.endswith("/data.pkl")]
  if len(pickles) != 1:
    raise UserError(f"{path}: a zip archive, but not of torch.save (no data.pkl in it)")
  if repeated := next((name for name, count in collections.Counter(entries).items() if count > 1), None):
    raise UserError(f"{path}: holds {repeated} more than once")
  root = pickles[0].removesuffix("data.pkl")
  if f"{root}constants.pkl" in entries:
    raise UserError(f"{path}: a TorchScript program, not a state dict; save model.state_dict() instead")
  if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
    raise UserError(f"{path}: written by a big-endian machine, which is not read here")

  # Tensors that share a storage mostly come one after the other.
  load = functools.lru_cache(maxsize=1)(functools.partial(_zip_entry, path))

  def storage(dtype: np.dtype, key: str, count: int) -> Storage:
    entry = f"{root}data/{key}"
    if archive.getinfo(entry).file_size < count * dtype.itemsize:
      raise EOFError(f"{entry} is too short")
    return Storage(path, dtype, count, lambda: load(entry))

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
  storages: dict[str, Storage] = {}
  load = functools.lru_cache(maxsize=1)(functools.partial(_slice, path))

  def storage(dtype: np.dtype, key: str, count: int) -> Storage:
    storages[key] = Storage(path, dtype, count, lambda: load(places[key], count * dtype.itemsize))
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
