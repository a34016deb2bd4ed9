"""Records in TFRecord files, read in sequence from any record on without reading what lies before it."""

import dataclasses
import functools
import os
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from core.import_tensorflow import import_tensorflow
from core.masking import masked

_BUFFER_BYTES = 1 << 20
_FRAMING_BYTES = 16  # A record is its length (8 bytes) and that length's checksum (4), the bytes, their checksum (4).


@dataclasses.dataclass(frozen=True)
class Records:
  """Serialized examples in pieces of TFRecord files, in file order.

  Attributes:
    name: the dataset and split in words, for messages.
    files: path of each piece's file.
    skips: records of the file before each piece.
    takes: records of each piece.
    parse: tensor function, one serialized record -> its features.
    classes: the names of the classes in the order of their labels, where the dataset has some.
    pieces: gives the ranges of records that a split of the same dataset names; None: this is no part of a dataset.
    kept: of each piece, the numbers of its records that are left of it, `takes` of them; None: all are.
    passes: tensor function, one serialized record -> whether it is left; None: all are.
  """

  name: str
  files: tuple[str, ...]
  skips: tuple[int, ...]
  takes: tuple[int, ...]
  parse: Callable[[Any], dict[str, Any]]
  classes: tuple[str, ...] = ()
  pieces: Callable[[str], list[tuple[str, int, int]]] | None = None
  kept: tuple[Int64[np.ndarray, "kept"], ...] | None = None
  passes: Callable[[Any], Any] | None = None

  def __len__(self) -> int:
    return sum(self.takes)

  def describe(self, row: int) -> str:
    """Returns what to call the `row`-th record in a message."""
    piece = int(np.searchsorted(np.cumsum(self.takes), row, side="right"))
    return self.describe_in_piece(piece, row - sum(self.takes[:piece]))

  def describe_in_piece(self, piece: int, number: int) -> str:
    """Returns what to call a piece's `number`-th record in a message."""
    return f"record {self._place(piece, number)} of {os.path.basename(self.files[piece])}"

  def _place(self, piece: int, number: int) -> int:
    """Returns which record of its file a piece's `number`-th is."""
    return self.skips[piece] + (number if self.kept is None else int(self.kept[piece][number]))

  def locate(self, pieces: Iterable[int], firsts: Iterable[int], counts: Iterable[int]) -> "Segments":
    """Returns where `counts[i]` records of `pieces[i]` from `firsts[i]` on lie, i = 0, 1, ..."""
    files = [self.files[piece] for piece in pieces]
    starts = [start_of(file, self._place(piece, int(n))) for file, piece, n in zip(files, pieces, firsts)]
    offsets, skips = np.array(starts, np.int64).reshape(-1, 2).T
    return Segments(np.array(files, np.bytes_), offsets, skips, np.asarray(counts, np.int64))

  def range(self, low: int, high: int) -> "Segments":
    """Returns where the records [low, high) in file order lie."""
    ends = np.cumsum(self.takes)
    starts = ends - self.takes
    first, last = np.maximum(starts, low), np.minimum(ends, high)
    pieces = np.flatnonzero(last > first)
    return self.locate(pieces, (first - starts)[pieces], (last - first)[pieces])


class Segments(NamedTuple):
  """Runs of records, arrays [segments]: file, byte to start at, records to skip from there, records to read."""

  file: np.ndarray
  offset: np.ndarray
  skip: np.ndarray
  count: np.ndarray


def start_of(file: str, record: int) -> tuple[int, int]:
  """Returns the byte to start reading at, and how many records to skip from there, so as to reach the `record`-th.

  In a local file that is the record itself; a remote one is read from its start, as every hop there takes a request.
  """
  if record == 0 or "://" in file:
    return 0, record
  with _indexing:  # Many lanes ask for the same file at the same time.
    offsets = _record_offsets(file)
  return int(offsets[min(record, len(offsets) - 1)]), 0


_indexing = threading.Lock()


@functools.lru_cache(maxsize=256)
def _record_offsets(file: str) -> Int64[np.ndarray, "records+1"]:
  """Finds where each record begins and the last one ends: hops from length to length, reading 8 bytes a record."""
  offsets, offset, size = [0], 0, os.path.getsize(file)
  descriptor = os.open(file, os.O_RDONLY)
  try:
    while offset < size:
      length = os.pread(descriptor, 8, offset)
      offset += int.from_bytes(length, "little") + _FRAMING_BYTES
      offsets.append(min(offset, size))  # A damaged length ends the walk; reading there finds the damage.
  finally:
    os.close(descriptor)
  return np.array(offsets)


def read(where: Segments, *, pad_damaged: bool = False, passes: Callable[[Any], Any] | None = None) -> Any:
  """Returns the `tf.data.Dataset` of the serialized records of some segments, one after the other.

  A file that holds fewer records, or a damaged one, is an error; with `pad_damaged` the rest of that segment's records
  are empty strings, which no parser takes, so that what follows keeps its place. With the `passes` of `Records`, those
  that are not left are passed over, and not counted.
  """
  tf = import_tensorflow()

  def read_one(file, offset, skip, count):
    variant = tf.raw_ops.TFRecordDatasetV2(
      filenames=[file], compression_type="", buffer_size=_BUFFER_BYTES, byte_offsets=[offset], metadata=""
    )
    records = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).skip(skip)
    if passes is not None:
      records = records.filter(passes)
    if pad_damaged:
      return records.ignore_errors().concatenate(tf.data.Dataset.from_tensors(b"").repeat()).take(count)
    return records.take(count).apply(tf.data.experimental.assert_cardinality(count))

  return tf.data.Dataset.from_tensor_slices(tuple(where)).flat_map(read_one)


def first_damage(where: Segments, passes: Callable[[Any], Any] | None = None) -> str | None:
  """Reads the segments one after the other and says which file is damaged and how, or None."""
  tf = import_tensorflow()
  for i, file in enumerate(where.file):
    try:
      for _ in read(Segments(*(array[i : i + 1] for array in where)), passes=passes):
        pass
    except tf.errors.OpError as error:
      return f"{file.decode()} is damaged ({reason(error)})"
  return None


def reason(error: Exception) -> str:
  """Returns the first line of a TensorFlow error, without the names of graph nodes and the brackets of assertions."""
  lines = (getattr(error, "message", None) or str(error)).strip().splitlines()
  text = next((line for line in lines if line.strip()), type(error).__name__)
  text = text.split("}} ", 1)[-1].split(" [Op:", 1)[0].strip()
  # `Assert` puts each of its values in brackets: the sentence that the op has for it, then what it found.
  text = re.sub(r"^assertion failed: \[(.*?:)\] ", r"\1 ", text).replace("\\'", "'")
  text = masked(text)
  return text if len(text) <= 160 else text[:157] + "..."
