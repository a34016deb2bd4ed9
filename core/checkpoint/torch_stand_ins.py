"""What a pickle of PyTorch gets for the names in it: stand-ins that hold what is read, and nothing that runs.

A pickle can do more than call what it names: it can write attributes of any object that it has in hand (its BUILD),
and add to it. So whatever it is handed here, object or class, takes that in silence and keeps nothing of it.
"""

import contextlib
import dataclasses
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from core.checkpoint.values import UnreadError
from core.errors import UserError

# What the readers of pickles and zip archives raise when they are fed other bytes.
_NONSENSE = (
  *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, AttributeError),
  *(TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError),
)


@contextlib.contextmanager
def damage_in_one_line(path: Path) -> Iterator[None]:
  """Turns what is raised at bytes that are no file of `torch.save`, or of a damaged one, into a line that says so."""
  try:
    yield
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
  except _NONSENSE as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"{path}: damaged, or not a file of torch.save ({reason})") from None


class _Sealed:
  """An object of which nothing can be written by what pickles do to objects, its class included."""

  __slots__ = ()

  @staticmethod
  def __setstate__(*_: Any) -> None:
    pass


class Inert(_Sealed):
  """Stands in for an object without arrays, the run's options say, and for its class: takes anything, does nothing."""

  __slots__ = ()

  def __init__(self, *_: Any, **__: Any) -> None:
    pass

  @staticmethod
  def _ignore(*_: Any) -> None:
    pass

  append = extend = add = __setitem__ = _ignore


class State(_Sealed, dict):
  """Stands in for dictionaries of every kind: `OrderedDict`, `Counter`, ..."""

  __slots__ = ()


class _Function(_Sealed):
  """Stands in for a function."""

  __slots__ = ("_function",)

  def __init__(self, function: Callable[..., Any]) -> None:
    self._function = function

  def __call__(self, *args: Any) -> Any:
    return self._function(*args)


class Dtype(_Sealed):
  """Stands in for a type of numbers, and for the class of their storages.

  Attributes:
    name: PyTorch's, "float32".
    numpy: the same of NumPy; None where the type is not read.
  """

  __slots__ = ("name", "numpy")

  def __init__(self, name: str, numpy: Any) -> None:
    self.name, self.numpy = name, None if numpy is None else np.dtype(numpy)


@dataclasses.dataclass(frozen=True, slots=True)
class Storage(_Sealed):
  """A row of numbers in a file.

  Attributes:
    path: of the file.
    dtype: of the numbers; uint8 where the tensors tell.
    count: of the numbers.
    load: gives their bytes.
  """

  path: Path
  dtype: np.dtype
  count: int
  load: Callable[[], bytes]

  __setstate__ = _Sealed.__setstate__


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor(_Sealed):
  """A view of a storage.

  Attributes:
    storage: what it is a view of.
    dtype: of its numbers.
    offset: of the first, in numbers from the start of the storage.
    shape: of the tensor.
    strides: from one number to the next along each axis, in numbers.
    negated: what it shows is the negative of what is stored.
    conjugated: what it shows is the complex conjugate of what is stored.
  """

  storage: Storage
  dtype: np.dtype
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  negated: bool = False
  conjugated: bool = False

  __setstate__ = _Sealed.__setstate__

  def __post_init__(self) -> None:
    if not all(isinstance(each, int) for each in (self.offset, *self.shape, *self.strides)):
      raise ValueError("a tensor whose shape holds no whole numbers")
    reach = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)) + 1
    if min((*self.shape, *self.strides, self.offset), default=0) < 0 or (math.prod(self.shape) and reach > self._held):
      raise ValueError("a tensor reaches beyond its storage")

  @property
  def _held(self) -> int:
    """How many of such numbers the storage has."""
    return self.storage.count * self.storage.dtype.itemsize // self.dtype.itemsize

  def read(self) -> np.ndarray:
    """Returns the numbers."""
    if not math.prod(self.shape):
      return np.zeros(self.shape, self.dtype)
    with damage_in_one_line(self.storage.path):
      # As bytes until the end: NumPy's functions of strides refuse float8_e5m2.
      size = self.dtype.itemsize
      stored = np.frombuffer(self.storage.load(), f"V{size}", self._held)[self.offset :]
      strides = tuple(stride * size for stride in self.strides)
      array = np.lib.stride_tricks.as_strided(stored, self.shape, strides, writeable=False).view(self.dtype)
      array = array.conj() if self.conjugated else array
      return -array if self.negated else array


class Unread(_Sealed):
  """Stands in for a tensor of a kind that is not read.

  Attributes:
    kind: "a sparse tensor".
  """

  __slots__ = ("kind",)

  def __init__(self, kind: str) -> None:
    self.kind = kind

  def read(self) -> np.ndarray:
    """Raises what says so."""
    raise UnreadError(self.kind)


def _tensor(
  storage: Storage, dtype: Dtype, offset: int, size: tuple, stride: tuple, metadata: Mapping[str, bool] | None = None
) -> Tensor | Unread:
  if dtype.numpy is None:
    return Unread(f"a tensor of the type {dtype.name}")
  seen = metadata or {}
  return Tensor(storage, dtype.numpy, offset, tuple(size), tuple(stride), bool(seen.get("neg")), bool(seen.get("conj")))


def _rebuild_tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *rest: Any) -> Tensor | Unread:
  """Stands in for `_rebuild_tensor_v2`: then come requires_grad, hooks, and since PyTorch 1.12 metadata."""
  return _tensor(storage, Dtype("", storage.dtype), offset, size, stride, *rest[2:3])


def _rebuild_tensor_v3(
  storage: Storage, offset: int, size: tuple, stride: tuple, grad: bool, hooks: Any, dtype: Dtype, *metadata: Any
) -> Tensor | Unread:
  del grad, hooks
  return _tensor(storage, dtype, offset, size, stride, *metadata[:1])


def _rebuild_from_type(function: Any, _: Any, args: tuple, *__: Any) -> Any:
  """Stands in for what rebuilds a tensor with attributes, `nn.Buffer` for one."""
  if not isinstance(function, _Function):
    raise TypeError(f"a tensor made by {type(function).__name__}")
  return function(*args)


def _first(tensor: Any, *_: Any) -> Any:
  return tensor


def _unread(kind: str) -> _Function:
  return _Function(lambda *_: Unread(kind))


def _new_state(*_: Any) -> State:
  return State()


_NUMPY = {
  "float64": np.float64,
  "float32": np.float32,
  "float16": np.float16,
  "bfloat16": ml_dtypes.bfloat16,
  "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
  "float8_e5m2": ml_dtypes.float8_e5m2,
  "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
  "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
  "complex128": np.complex128,
  "complex64": np.complex64,
  "int64": np.int64,
  "int32": np.int32,
  "int16": np.int16,
  "int8": np.int8,
  "uint64": np.uint64,
  "uint32": np.uint32,
  "uint16": np.uint16,
  "uint8": np.uint8,
  "bool": np.bool_,
}
_UNREAD = ("complex32", "float4_e2m1fn_x2", "bits1x8", "bits2x4", "bits4x2", "bits8", "bits16", "qint8", "quint8")
_DTYPES = {name: Dtype(name, kind) for name, kind in _NUMPY.items()} | {name: Dtype(name, None) for name in _UNREAD}
_STORAGES = {
  "Double": "float64",
  "Float": "float32",
  "Half": "float16",
  "BFloat16": "bfloat16",
  "ComplexDouble": "complex128",
  "ComplexFloat": "complex64",
  "Long": "int64",
  "Int": "int32",
  "Short": "int16",
  "Char": "int8",
  "Byte": "uint8",
  "Bool": "bool",
  # The numbers of quantized tensors, which are not read.
  "QInt8": "int8",
  "QUInt8": "uint8",
  "QInt32": "int32",
}
_TENSORS = {
  "_rebuild_tensor": _Function(_rebuild_tensor),
  "_rebuild_tensor_v2": _Function(_rebuild_tensor),
  "_rebuild_tensor_v3": _Function(_rebuild_tensor_v3),
  "_rebuild_parameter": _Function(_first),
  "_rebuild_parameter_with_state": _Function(_first),
  "_rebuild_qtensor": _unread("a quantized tensor"),
  "_rebuild_sparse_tensor": _unread("a sparse tensor"),
  "_rebuild_nested_tensor": _unread("a nested tensor"),
  "_rebuild_meta_tensor_no_storage": _unread("a tensor without numbers (of the device meta)"),
}
_DICTIONARIES = {("collections", "OrderedDict"): State, ("collections", "Counter"): State}
# Names of objects without arrays, harmless ones that training programs do store.
_INERT = {
  "argparse": "Namespace",
  "collections": "deque",
  "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
  "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
  "datetime": "date datetime time timedelta timezone",
  "decimal": "Decimal",
  "fractions": "Fraction",
  "uuid": "UUID",
  "_codecs": "encode",
  "numpy": "dtype ndarray bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64",
  "numpy.core.multiarray": "scalar _reconstruct",
  "numpy._core.multiarray": "scalar _reconstruct",
  "numpy.core.numeric": "_frombuffer",
  "numpy._core.numeric": "_frombuffer",
  "torch": "device Tensor per_tensor_affine per_channel_affine",
  "torch.nn.parameter": "Parameter Buffer",
  "torch.serialization": "_get_layout",
}
_BUILT_IN = "set frozenset bytearray bytes complex range xrange slice list dict tuple int long float bool str unicode"
# All that a pickle may name; of Python 2's names those that protocol 2 writes to this day.
KNOWN: dict[tuple[str, str], Any] = {
  **{(module, name): Inert for module, names in _INERT.items() for name in names.split()},
  **{(module, name): Inert for module in ("builtins", "__builtin__") for name in _BUILT_IN.split()},
  **{("torch", name): dtype for name, dtype in _DTYPES.items()},
  **{("torch", f"{kind}Storage"): _DTYPES[name] for kind, name in _STORAGES.items()},
  ("torch.storage", "UntypedStorage"): _DTYPES["uint8"],
  **{("torch._utils", name): function for name, function in _TENSORS.items()},
  ("torch._tensor", "_rebuild_from_type_v2"): _Function(_rebuild_from_type),
  ("torch", "Size"): _Function(tuple),
  **_DICTIONARIES,
  ("collections", "defaultdict"): _Function(_new_state),
}
