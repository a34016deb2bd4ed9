"""The pp op that turns labels into vectors, on one example's tensors and on a batch of NumPy arrays."""

from typing import Any

import numpy as np

from core.errors import UserError
from core.pp.arguments import Float32, Key, NewKey, NumClasses
from core.pp.registry import OpFunctions, op


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
  if on == off:
    raise UserError(f"on and off are both {on!r}: nothing would be left of the labels")
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
