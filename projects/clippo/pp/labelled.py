"""Labelled images in a mixture with pairs: every example has `image`, `labels` and `label`, whatever it is."""

import numpy as np

from core.errors import UserError
from core.pp.registry import OpFunctions, op

UNLABELLED = -1


@op()
def paired():
  """Marks a pair, of `image` and `labels`, as one without a label: `label` is -1."""

  def per_example(data):
    import tensorflow as tf

    return {**data, "label": tf.constant(UNLABELLED, tf.int32)}

  return OpFunctions(per_example, lambda data: {**data, "label": np.full(len(data["image"]), UNLABELLED, np.int32)})


@op()
def labelled(num_classes, key="label"):
  """Makes a labelled image such an example: an empty picture under `labels`, where a pair has its text.

  Args:
    num_classes: how many there are.
    key: the label, an integer in [0, num_classes).
  """
  if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
    raise UserError(f"num_classes must be a whole number from 1 on, got {num_classes!r}")

  def per_example(data):
    import tensorflow as tf

    if not data[key].dtype.is_integer or data[key].shape.rank:
      raise UserError(f"{key!r} must hold one label, an integer, not {data[key].dtype.name} {data[key].shape}")
    label = tf.cast(data[key], tf.int32)
    message = f"pp op labelled: a label outside [0, {num_classes}) under key {key}:"
    check = tf.raw_ops.Assert(condition=(label >= 0) & (label < num_classes), data=[message, label])
    with tf.control_dependencies([check]):
      return {**data, "labels": tf.zeros_like(data["image"]), "label": tf.identity(label)}

  def batched(data):
    label = np.asarray(data[key])
    if label.dtype.kind not in "iu" or label.ndim != 1:
      raise UserError(f"{key!r} must hold one label, an integer, not {label.dtype.name} {label.shape[1:]}")
    if wrong := label[(label < 0) | (label >= num_classes)].tolist():
      raise UserError(f"labels outside [0, {num_classes}) under key {key!r}: {', '.join(map(str, sorted(wrong)[:8]))}")
    return {**data, "labels": np.zeros_like(data["image"]), "label": label.astype(np.int32)}

  return OpFunctions(per_example, batched)
