"""Checkpoints of TensorFlow, `NAME.index` beside `NAME.data-00000-of-00001`, read without TensorFlow.

The index is a table in LevelDB's format (sorted names in blocks, a footer that points to the block of blocks) whose
values are protocol buffers: where in which data file an array lies, its type, shape and checksum. That is all of
`tensor_bundle.proto` and LevelDB's `table_format.md` that is wanted here; every checksum is verified.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from core import files
from core.checkpoint import remote
from core.errors import UserError, first_few

# By their numbers in TensorFlow's types.proto.
_DTYPES = {
  1: "<f4",
  2: "<f8",
  3: "<i4",
  4: "u1",
  5: "<i2",
  6: "i1",
  9: "<i8",
  10: "?",
  14: ml_dtypes.bfloat16,
  19: "<f2",
}
_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER, _TRAILER = 48, 5  # Bytes: two handles and the magic; after a block its compression and checksum.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # Kinds of fields in a protocol buffer.
_NAME_IN_FOLDER = "bert_model.ckpt"  # Of BERT's release, whose folders no listing tells where they are remote.


def prefix(location: str) -> str | None:
  """The common beginning of the names of a checkpoint's files, or None where the location is of no checkpoint.

  Args:
    location: that beginning ("DIR/bert_model.ckpt"), the name of its `.index`, or a folder: locally one with a single
      checkpoint in it, else one of BERT's release.

  Raises:
    UserError: a folder with several checkpoints in it.
  """
  location = location.removesuffix(".index")
  if "://" in location:
    name = location.rstrip("/").rpartition("/")[2]
    if name.endswith(".ckpt"):
      return location
    return (
      None if re.search(r"\.(npz|safetensors|bin|pth|pt|tar)\b", name) else f"{location.rstrip('/')}/{_NAME_IN_FOLDER}"
    )
  path = files.from_here(location)
  if path.is_dir():
    found = sorted(str(each).removesuffix(".index") for each in path.glob("*.index"))
    if len(found) > 1:
      raise UserError(f"{path}: several checkpoints: {first_few([Path(each).name for each in found])}; name one")
    return found[0] if found else None
  return str(path) if path.with_name(f"{path.name}.index").is_file() else None


def read(prefix: str) -> dict[str, np.ndarray]:
  """The arrays of a checkpoint by their names there; what holds no numbers (strings) is left out.

  Args:
    prefix: see `prefix`.

  Raises:
    UserError: a file that is not there, not of this format, or damaged.
  """
  index = remote.fetch(f"{prefix}.index")
  entries = dict(_table(_content(index), str(index)))
  header = _fields(entries.pop(b"", b""), str(index))
  if header.get(2):
    raise UserError(f"{index}: written by a big-endian machine, which is not read")
  shards = header.get(1, [1])[0]
  held: dict[str, np.ndarray] = {}
  data: dict[int, tuple[str, np.ndarray]] = {}
  for key, value in entries.items():
    entry = _entry(value, str(index))
    if entry.dtype not in _DTYPES:
      continue
    if entry.shard not in data:
      path = remote.fetch(f"{prefix}.data-{entry.shard:05d}-of-{shards:05d}")
      data[entry.shard] = str(path), _mapped(path)
    held[key.decode()] = _array(entry, key.decode(), *data[entry.shard])
  if not held:
    raise UserError(f"{index}: holds no parameters")
  return held


@dataclasses.dataclass(frozen=True)
class _Entry:
  """Where an array lies."""

  dtype: int
  shape: tuple[int, ...]
  shard: int
  offset: int
  size: int
  checksum: int


def _content(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _mapped(path: Path) -> np.ndarray:
  try:
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
  except FileNotFoundError:
    raise UserError(f"{path}: no such file; it belongs beside the .index") from None
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _array(entry: _Entry, name: str, where: str, data: np.ndarray) -> np.ndarray:
  dtype = np.dtype(_DTYPES[entry.dtype])
  stored = data[entry.offset : entry.offset + entry.size]
  if len(stored) != entry.size or math.prod(entry.shape) * dtype.itemsize != entry.size:
    raise UserError(f"{where}: cut short, or not the data of this index ({name} is not whole)")
  stored = stored.tobytes()
  if _masked_crc(stored) != entry.checksum:
    raise UserError(f"{where}: damaged: the checksum of {name} differs")
  return np.frombuffer(stored, dtype).reshape(entry.shape)


def _entry(value: bytes, where: str) -> _Entry:
  fields = _fields(value, where)
  number = lambda field: fields.get(field, [0])[0]
  dims = [_fields(dim, where).get(1, [0])[0] for dim in _fields(number(2) or b"", where).get(2, [])]
  if 7 in fields:
    raise UserError(f"{where}: holds arrays in slices, which are not read")
  return _Entry(number(1), tuple(dims), number(3), number(4), number(5), number(6))


def _table(content: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
  """The keys and values of a LevelDB table, in order."""
  if content[-8:] != _MAGIC or len(content) < _FOOTER:
    raise UserError(f"{where}: not the index of a TensorFlow checkpoint, or a truncated one")
  footer = content[-_FOOTER:]
  try:
    (_, _), end = _handle(footer, 0)
    (offset, size), _ = _handle(footer, end)
    for _, handle in _block(content, offset, size, where):
      yield from _block(content, *_handle(handle, 0)[0], where)
  except (IndexError, ValueError) as error:
    raise UserError(f"{where}: a damaged index of a TensorFlow checkpoint ({error})") from None


def _block(content: bytes, offset: int, size: int, where: str) -> Iterator[tuple[bytes, bytes]]:
  stored, trailer = content[offset : offset + size], content[offset + size : offset + size + _TRAILER]
  if len(trailer) != _TRAILER or _masked_crc(stored + trailer[:1]) != int.from_bytes(trailer[1:], "little"):
    raise UserError(f"{where}: damaged: the checksum of a block of the index differs")
  if trailer[0]:
    raise UserError(f"{where}: a compressed index, which is not read")
  end = len(stored) - 4 * (1 + int.from_bytes(stored[-4:], "little"))
  at, key = 0, b""
  while at < end:
    shared, at = _varint(stored, at)
    added, at = _varint(stored, at)
    length, at = _varint(stored, at)
    key = key[:shared] + stored[at : at + added]
    at += added + length
    yield key, stored[at - length : at]


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
  """((offset, size) of a block, the end of these)."""
  offset, at = _varint(data, at)
  size, at = _varint(data, at)
  return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
  number = shift = 0
  while True:
    number |= (data[at] & 0x7F) << shift
    shift, at = shift + 7, at + 1
    if not data[at - 1] & 0x80:
      return number, at


def _fields(message: bytes, where: str) -> dict[int, list]:
  """The fields of a protocol buffer by number: whole numbers, or bytes of strings and of messages within."""
  found: dict[int, list] = {}
  at = 0
  try:
    while at < len(message):
      tag, at = _varint(message, at)
      match tag & 7:
        case kind if kind == _VARINT:
          value, at = _varint(message, at)
        case kind if kind == _BYTES:
          length, at = _varint(message, at)
          value, at = message[at : at + length], at + length
        case kind if kind in (_FIXED32, _FIXED64):
          length = 4 if kind == _FIXED32 else 8
          value, at = int.from_bytes(message[at : at + length], "little"), at + length
        case kind:
          raise ValueError(f"a field of kind {kind}")
      found.setdefault(tag >> 3, []).append(value)
  except (IndexError, ValueError) as error:
    raise UserError(f"{where}: a damaged index of a TensorFlow checkpoint ({error})") from None
  return found


def _masked_crc(data: bytes) -> int:
  """CRC-32C, rotated and shifted as LevelDB stores it, so that sums of sums are no plain sums."""
  import google_crc32c

  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
