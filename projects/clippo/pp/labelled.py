"""Labelled images in a mixture with pairs: every example has `image`, `labels` and `label`, whatever it is."""

import numpy as np

from core.errors import UserError
from core.pp.arguments import Key, NumClasses
from core.pp.held import require_numbers
from core.pp.registry import OpFunctions, op

UNLABELLED = -1


@op()
def paired():
  """Marks a pair, of `image` and `labels`, as one without a label: `label` is -1."""

  def accepts(held):
    held("image")

  def per_example(data):
    import tensorflow as tf

    return {**data, "label": tf.constant(UNLABELLED, tf.int32)}

  def batched(data):
    return {**data, "label": np.full(len(data["image"]), UNLABELLED, np.int32)}

  return OpFunctions(per_example, batched, accepts)


@op()
def labelled(num_classes: NumClasses, key: Key = "label"):
  """Makes a labelled image such an example: an empty picture under `labels`, where a pair has its text.

  Args:
    num_classes: how many there are.
    key: the label, an integer in [0, num_classes).
  """
  outside = f"labels outside [0, {num_classes}) under key {key!r}:"

  def accepts(held):
    require_numbers(held("image"))
    label = held(key)
    if not label.is_integer or label.dtype == "bool" or label.rank != 0:
      raise UserError(f"{key!r} must hold one label, an integer, not {label}")

  def per_example(data):
    import tensorflow as tf

    label = tf.cast(data[key], tf.int32)
    condition = (label >= 0) & (label < num_classes)
    check = tf.raw_ops.Assert(condition=condition, data=[f"pp op labelled: {outside}", label])
    with tf.control_dependencies([check]):
      return {**data, "labels": tf.zeros_like(data["image"]), "label": tf.identity(label)}

  def batched(data):
    label = np.asarray(data[key])
    if wrong := label[(label < 0) | (label >= num_classes)].tolist():
      raise UserError(f"{outside} {', '.join(map(str, sorted(wrong)[:8]))}")
    return {**data, "labels": np.zeros_like(data["image"]), "label": label.astype(np.int32)}

  return OpFunctions(per_example, batched, accepts)
