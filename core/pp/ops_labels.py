"""pp ops on labels: vectors and names of them, numbers of names. On one example's tensors and on a batch of arrays."""

import json
import re
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Shaped

from core import data_files, files, text_lines
from core.checkpoint import remote
from core.errors import UserError
from core.pp import text as text_lib
from core.pp.arguments import Float32, Key, NewKey, NumClasses, Words
from core.pp.held import Held
from core.pp.registry import OpFunctions, key_op, op
from core.recipe.types import FilePath

_WHOLE_NUMBER = re.compile(r"\s*-?[0-9]{1,18}\s*")


@op()
def onehot(
  depth: NumClasses,
  key: Key = "labels",
  key_result: NewKey | None = None,
  multi: bool = True,
  on: Float32 = 1.0,
  off: Float32 = 0.0,
):
  """Turns labels in [0, depth) into float32 vectors: `on` at the label, `off` elsewhere.

  Args:
    depth: the number of classes.
    key: where the label or labels of the example are, whole numbers.
    key_result: where the vector goes; `key` if None.
    multi: several labels (a 1-D array) give one vector with all of them on, in which -1 stands for no label; if False
      they give a vector each.
    on: value at a label.
    off: value elsewhere.

  A label that is out of range is refused when it comes by: it would otherwise be a row of zeros that nobody sees.
  """
  target = key_result or key
  if target.startswith("_"):
    raise UserError(f"{target!r} belongs to the pipeline; give key_result")
  outside = f"labels outside [0, {depth}) under key {key!r}:"

  def accepts(held):
    labels = held(key)
    if labels.is_text:
      raise UserError(f"{key!r} holds text; labels are integers (the source jsonl makes them of names by classes=...)")
    if not labels.is_integer or labels.rank is None:
      raise UserError(f"{key!r} holds {labels}; labels are integers")
    if multi and labels.rank > 1:
      raise UserError(f"{key!r} holds {labels}; several labels are a list of them, or multi=False gives a vector each")

  def per_example(data):
    return {**data, target: _vectors_of_example(data[key], depth, multi, on, off, f"pp op onehot: {outside}")}

  def batched(data):
    labels = np.asarray(data[key]).astype(np.int64)
    several = multi and labels.ndim > 1
    wrong = labels[(labels < (-1 if several else 0)) | (labels >= depth)]
    if wrong.size:
      raise UserError(f"{outside} {', '.join(map(str, np.unique(wrong)[:8]))}")
    vectors = np.full((*labels.shape[: 1 if several else None], depth + 1), off, np.float32)
    rows = np.arange(len(labels))[:, None] if several else np.indices(labels.shape, sparse=True)
    vectors[(rows, labels) if several else (*rows, labels)] = on
    return {**data, target: np.ascontiguousarray(vectors[..., :depth])}

  return OpFunctions(per_example, batched, accepts)


def _vectors_of_example(labels: Any, depth: int, multi: bool, on: float, off: float, message: str) -> Any:
  """Returns the vector, or vectors, of one example's labels; `message` begins what is said of labels out of range."""
  import tensorflow as tf

  labels = tf.cast(labels, tf.int64)
  several = multi and labels.shape.rank > 0
  fine = (labels >= (-1 if several else 0)) & (labels < depth)
  # The raw op: `tf.debugging.assert_*` would cost a conditional an example.
  check = tf.raw_ops.Assert(condition=tf.reduce_all(fine), data=[message, labels], summarize=8)
  with tf.control_dependencies([check]):
    if not several:
      return tf.one_hot(labels, depth, on_value=on, off_value=off, dtype=tf.float32)
    # Slot `depth` takes the -1 of "no label" and is then cut off.
    slots = tf.where(labels < 0, tf.constant(depth, tf.int64), labels)[:, None]
    vectors = tf.tensor_scatter_nd_update(tf.fill([depth + 1], float(off)), slots, tf.fill(tf.shape(labels), float(on)))
    return vectors[:depth]


@key_op()
def lookup(mapping: FilePath, npzkey: Key = "fnames", sep: Words | None = None):
  """Turns texts into the numbers that a file has for them, int64; -1 for a text that it does not have.

  Args:
    mapping: a text file with a text a line, whose number is that of its line, from 0 on; or a `.npz`.
    npzkey: the array of a `.npz` that holds the texts; the number of each is its place.
    sep: what stands on each line of a text file between the text and its number, a whole one.
  """
  path = remote.fetch(mapping)
  pairs = _of_npz(path, npzkey) if path.suffix == ".npz" else _of_lines(path, sep)
  numbers: dict[bytes, int] = {}
  for name, number in pairs:
    if numbers.setdefault(name, number) != number:
      raise UserError(f"mapping {mapping} has two numbers for {name.decode(errors='replace')!r}")

  def looked_up(texts: list[bytes]) -> list[int]:
    return [numbers.get(text, -1) for text in texts]

  return text_lib.op_functions(looked_up, np.int64)


@key_op(key="label", outkey="labels")
def clip_i1k_label_names():
  """Turns labels of ImageNet-1k, 0 to 999, into the names that CLIP's authors gave its classes."""
  file = data_files.find("core/evaluators/class_names/imagenet.json")
  names = np.array([name.encode() for name in json.loads(file.read_text("utf-8"))["classes"]], object)
  outside = f"labels outside [0, {len(names)}):"

  def accepts(held: Held) -> None:
    if not held.is_integer or held.dtype == "bool":
      raise UserError(f"it takes labels, whole numbers; the key holds {held}")

  def per_example(labels):
    import tensorflow as tf

    labels = tf.cast(labels, tf.int64)
    fine = tf.reduce_all((labels >= 0) & (labels < len(names)))
    check = tf.raw_ops.Assert(condition=fine, data=[f"pp op clip_i1k_label_names: {outside}", labels], summarize=8)
    with tf.control_dependencies([check]):
      return tf.gather(tf.constant(names), labels)

  def batched(labels: Shaped[np.ndarray, "batch ..."]) -> Shaped[np.ndarray, "batch ..."]:
    labels = np.asarray(labels).astype(np.int64)
    wrong = labels[(labels < 0) | (labels >= len(names))]
    if wrong.size:
      raise UserError(f"{outside} {', '.join(map(str, np.unique(wrong)[:8]))}")
    return names[labels]

  return OpFunctions(per_example, batched, accepts)


def _of_npz(path: Any, key: str) -> list[tuple[bytes, int]]:
  """Returns the texts of an array of a `.npz`, and their places."""
  try:
    with np.load(path, allow_pickle=False) as file:
      if key not in file:
        raise UserError(f"mapping {path} has no array {key!r}; it has {', '.join(map(repr, file.files)) or 'none'}")
      array = file[key]
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise UserError(f"mapping {path}: no .npz of arrays ({files.reason(error)})") from None
  if array.dtype.kind not in "US" or array.ndim != 1:
    raise UserError(f"mapping {path}: {key!r} must be a list of texts; it is {array.dtype} {list(array.shape)}")
  return [(name.encode() if isinstance(name, str) else name, place) for place, name in enumerate(array.tolist())]


def _of_lines(path: Any, sep: str | None) -> list[tuple[bytes, int]]:
  """Returns the texts of a file, and their numbers: of their lines, or those behind `sep`."""
  lines = text_lines.read(path, "mapping")
  if sep is None:
    return [(line.encode(), number) for number, line in enumerate(lines)]
  pairs = []
  for count, line in enumerate(lines, 1):
    name, *number = line.split(sep)
    if len(number) != 1 or not _WHOLE_NUMBER.fullmatch(number[0]):
      raise UserError(f"mapping {path} line {count} is no text, {sep!r} and whole number: {line[:60]!r}")
    pairs.append((name.encode(), int(number[0])))
  return pairs
