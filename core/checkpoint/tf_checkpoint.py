"""Checkpoints of TensorFlow, `NAME.index` beside `NAME.data-00000-of-00001`, read and verified by TensorFlow."""

import glob
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from core import files
from core.checkpoint import remote, values
from core.errors import UserError, first_few
from core.import_tensorflow import import_tensorflow

_NAME_IN_FOLDER = "bert_model.ckpt"  # Of BERT's release, whose folders no listing tells where they are remote.
_MISSING = re.compile(r"(\.data-\d{5}-of-\d{5}); No such file")
_DAMAGED_SHARD = re.compile(r"shard (\d+) .*(checksum .*)", re.IGNORECASE)


def prefix(location: str) -> str | None:
  """Returns the common beginning of the names of a checkpoint's files, or None where the location is of no checkpoint.

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
    is_file = re.search(r"\.(npz|bv|safetensors|bin|pth|pt|tar)\b[^/]*(:.*)?$", location)
    return None if is_file or location.startswith("hf://") else f"{location.rstrip('/')}/{_NAME_IN_FOLDER}"
  path = Path(files.from_here(location))
  if os.path.isdir(path):
    found = sorted(str(each).removesuffix(".index") for each in path.glob("*.index"))
    if len(found) > 1:
      raise UserError(f"{path}: several checkpoints: {first_few([Path(each).name for each in found])}; name one")
    return found[0] if found else None
  return str(path) if os.path.isfile(f"{path}.index") else None


def read(prefix: str) -> dict[str, np.ndarray]:
  """Returns the arrays of a checkpoint by their names there; what holds no numbers (strings) is left out.

  Args:
    prefix: see `prefix`.

  Raises:
    UserError: a file that is not there, not of this format, or damaged; an array that no model can hold
      (`values.check`).
  """
  index = remote.fetch(f"{prefix}.index")
  if not os.path.isfile(index):
    raise UserError(f"{index}: no such file")
  if "://" not in prefix:
    for data in glob.glob(f"{glob.escape(prefix)}.data-*"):
      remote.refuse_irregular(Path(data))
    try:
      return _read(prefix, prefix)
    except _MissingError as missing:
      raise UserError(f"{prefix}{missing}: no such file; it belongs beside the .index") from None
  # The cache has a folder for every file; TensorFlow wants them side by side.
  with tempfile.TemporaryDirectory() as folder:
    local = f"{folder}/checkpoint"
    Path(f"{local}.index").symlink_to(index)
    while True:
      try:
        return _read(local, remote.shown(prefix))
      except _MissingError as missing:
        Path(f"{local}{missing}").symlink_to(remote.fetch(f"{prefix}{missing}"))


class _MissingError(Exception):
  """A data file is not there; its text is what follows the prefix in its name."""


def _read(prefix: str, shown: str) -> dict[str, np.ndarray]:
  try:
    tf = import_tensorflow()
  except ImportError:
    raise UserError(f"{shown}: TensorFlow reads its checkpoints, and it is not installed here") from None
  try:
    reader = tf.train.load_checkpoint(prefix)
    dtypes = reader.get_variable_to_dtype_map()
  except Exception as error:  # TensorFlow raises errors of many kinds.
    raise UserError(f"{shown}.index: not the index of a TensorFlow checkpoint, or damaged ({_words(error)})") from None
  names = sorted(name for name, dtype in dtypes.items() if dtype != tf.string)
  for name in names:
    dtype = dtypes[name]
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool or dtype.is_complex):
      raise UserError(f"{shown}.index: {name} is of the type {dtype.name}, which is not read")
  if not names:
    raise UserError(f"{shown}.index: holds no parameters")
  return {name: _array(reader, name, shown) for name in names}


def _array(reader: Any, name: str, shown: str) -> np.ndarray:
  try:
    array = np.asarray(reader.get_tensor(name))
  except Exception as error:
    words = _words(error)
  else:
    return values.check(array, name, shown)
  if missing := _MISSING.search(words):
    raise _MissingError(missing[1])
  raise UserError(_damage(shown, name, words))


def _damage(shown: str, name: str, words: str) -> str:
  if match := _DAMAGED_SHARD.search(words):
    return f"{shown}.data-{int(match[1]):05d}-of-*: damaged: {name}: {match[2][:120]}"
  if "less bytes" in words:
    return f"{shown}.data-*: cut short, or not the data of this index ({name} is not whole)"
  return f"{shown}: damaged, or not the data of this index ({name}: {words[:120]})"


def _words(error: Exception) -> str:
  return " ".join(str(error).split())[-150:] or type(error).__name__
