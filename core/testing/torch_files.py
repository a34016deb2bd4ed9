"""Files as `torch.save` writes them, put together by hand where PyTorch is not."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_KINDS = {"float32": "Float", "float16": "Half", "float64": "Double", "complex64": "ComplexFloat"}


def save(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
  """Writes arrays by name, perhaps within entries, `{"state_dict": {"a.weight": array}}`."""
  storages: list[np.ndarray] = []
  pickled = _dict(content, storages)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x/data.pkl", b"\x80\x02" + pickled + b".")
    for number, array in enumerate(storages):
      archive.writestr(f"x/data/{number}", array.tobytes())


def _dict(content: Mapping[str, Any], storages: list[np.ndarray]) -> bytes:
  entries = (_text(name) + (_dict if isinstance(held, Mapping) else _tensor)(held, storages) + b"s"
             for name, held in content.items())  # fmt: skip
  return b"}" + b"".join(entries)


def _tensor(array: np.ndarray, storages: list[np.ndarray]) -> bytes:
  storages.append(np.ascontiguousarray(array))
  kind = f"ctorch\n{_KINDS[array.dtype.name]}Storage\n".encode()
  of_storage = _text("storage") + kind + _text(str(len(storages) - 1)) + _text("cpu") + _whole(array.size)
  strides = [stride // array.itemsize for stride in storages[-1].strides]
  reference = b"(" + of_storage + b"tQ"
  return b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + b"K\x00" + _sizes(array.shape) + _sizes(strides) + b"tR"


def _sizes(sizes: Sequence[int]) -> bytes:
  return b"(" + b"".join(map(_whole, sizes)) + b"t"


def _whole(number: int) -> bytes:
  return b"J" + number.to_bytes(4, "little")


def _text(words: str) -> bytes:
  return b"X" + len(words).to_bytes(4, "little") + words.encode()
