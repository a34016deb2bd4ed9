"""pp ops on the shape of what a key holds: another one, more of it, several joined.

Each but `rag_tensor` serves one example's tensors and, in its second form, a batch of NumPy arrays.
"""

import math
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from core.errors import UserError
from core.pp.arguments import Entries, Float32, Index, Keys, NewKey
from core.pp.held import Held, holds, require_entries, require_numbers
from core.pp.ops_general import as_keys
from core.pp.registry import OpFunctions, key_op, op

Values = Shaped[np.ndarray, "batch ..."]


@key_op()
def squeeze_last_dim():
  """Drops the last dimension, of size 1."""

  def accepts(held: Held) -> None:
    if not held.rank or held.shape[-1] not in (1, None):
      raise UserError(f"the last dimension must be 1; the value is {held}")

  def per_example(value):
    import tensorflow as tf

    return tf.squeeze(value, -1)

  def batched(values: Shaped[np.ndarray, "batch ... 1"]) -> Shaped[np.ndarray, "batch ..."]:
    return values[..., 0]

  return OpFunctions(per_example, batched, accepts)


@key_op()
def reshape(new_shape: Index | tuple[Index, ...]):
  """Gives each example another shape.

  Args:
    new_shape: the sizes, from 1 on, of which one may be -1: whatever is left.
  """
  shape = (new_shape,) if isinstance(new_shape, int) else new_shape
  if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
    raise UserError(f"new_shape must be sizes from 1 on, of which one may be -1, got {new_shape!r}")
  fixed = math.prod(size for size in shape if size != -1)

  def accepts(held: Held) -> None:
    if held.dtype == "a dict":
      raise UserError("it takes an array; the key holds a dict")
    if held.shape is None or None in held.shape:
      return  # TensorFlow's own op refuses it when it comes by.
    size = math.prod(held.shape)
    if size % fixed or (-1 not in shape and size != fixed):
      raise UserError(f"new_shape {new_shape!r} does not hold the {size} entries of {held}")

  def per_example(value):
    import tensorflow as tf

    return tf.reshape(value, shape)

  def batched(values: Shaped[np.ndarray, "batch ..."]) -> Shaped[np.ndarray, "batch ..."]:
    sizes = [math.prod(values.shape[1:]) // fixed if size == -1 else size for size in shape]
    return values.reshape((len(values), *sizes))

  return OpFunctions(per_example, batched, accepts)


@key_op()
def pad_to_shape(
  shape: Entries | tuple[Entries | None, ...],
  pad_value: Index | Float32 = 0,
  where: Literal["before", "after", "both"] = "after",
):
  """Adds entries until each example has a certain shape.

  Args:
    shape: the sizes; None leaves one as it is.
    pad_value: what is added; of whole numbers one that their type holds.
    where: on which side of what is there; of an odd number "both" adds more after it.
  """
  sizes = (shape,) if isinstance(shape, int) else shape
  if not sizes:
    raise UserError("shape is a size or a list of them, got an empty one")
  too_large = f"the value is larger than shape {shape!r}:"

  def accepts(held: Held) -> None:
    require_numbers(held)
    if held.rank != len(sizes):
      raise UserError(f"shape {shape!r} has {len(sizes)} sizes; the value is {held}")
    if any(None not in (new, old) and new < old for new, old in zip(sizes, held.shape)):
      raise UserError(f"{too_large} {held}")
    if held.is_integer and not holds(held.dtype, pad_value):
      raise UserError(f"pad_value {pad_value!r} is none of {held.dtype}")

  def amounts(old):
    missing = [0 * size if new is None else new - size for new, size in zip(sizes, old)]
    before = [{"before": size, "after": 0 * size, "both": size // 2}[where] for size in missing]
    return list(zip(before, [all_of - part for all_of, part in zip(missing, before)]))

  def per_example(value):
    import tensorflow as tf

    old = tf.unstack(tf.shape(value))
    fits = [size <= new for new, size in zip(sizes, old) if new is not None]
    data = [f"pp op pad_to_shape: {too_large}", tf.shape(value)]
    check = tf.raw_ops.Assert(condition=tf.reduce_all(fits), data=data)
    with tf.control_dependencies([check]):
      padded = tf.pad(value, amounts(old), constant_values=tf.constant(pad_value, value.dtype))
    return tf.ensure_shape(padded, [new or old for new, old in zip(sizes, value.shape)])

  def batched(values: Values) -> Values:
    return np.pad(values, [(0, 0), *amounts(values.shape[1:])], constant_values=values.dtype.type(pad_value))

  return OpFunctions(per_example, batched, accepts)


@op()
def concat(inkeys: Keys, outkey: NewKey | None = None, axis: Index = -1):
  """Joins what several keys hold, one behind the other along an axis; all other sizes, and the types, are the same.

  Args:
    inkeys: which, in this order.
    outkey: where it goes; to the first of them if None.
    axis: of each example, from 0 on, or counted from the end.
  """
  sources = as_keys(inkeys)
  if not sources:
    raise UserError("wants at least one key")
  target = outkey or sources[0]
  if target.startswith("_"):
    raise UserError(f"{target!r} belongs to the pipeline; give outkey")

  def accepts(held):
    all_held = [held(source) for source in sources]
    first = all_held[0]
    for source, each in zip(sources, all_held):
      require_entries(each, source)
      if not -each.rank <= axis < each.rank:
        raise UserError(f"there is no axis {axis}: {source!r} holds {each}")
      if each.dtype != first.dtype or each.rank != first.rank:
        raise UserError(f"{sources[0]!r} and {source!r} hold {first} and {each}")
      rest = [n for n in range(each.rank) if n != axis % each.rank]
      if any(None not in (first.shape[n], each.shape[n]) and first.shape[n] != each.shape[n] for n in rest):
        raise UserError(
          f"but for the axis {axis} sizes must be the same: {sources[0]!r} and {source!r} hold {first} and {each}"
        )

  def per_example(data):
    import tensorflow as tf

    return {**data, target: tf.concat([data[source] for source in sources], axis)}

  def batched(data):
    values = [np.asarray(data[source]) for source in sources]
    return {**data, target: np.concatenate(values, axis if axis < 0 else axis + 1)}

  return OpFunctions(per_example, batched, accepts)


@key_op()
def rag_tensor():
  """Makes a `tf.RaggedTensor` [1, ...] of what a key holds, whose sizes may differ from example to example.

  `tf.data` batches those. The batches of a run have one shape: `pad_to_shape` is for them.
  """

  def accepts(held: Held) -> None:
    if held.dtype == "a dict" or not held.rank:
      raise UserError(f"it takes an array; the key holds {held}")

  def per_example(value):
    import tensorflow as tf

    return tf.RaggedTensor.from_tensor(value[None])

  return OpFunctions(per_example, accepts=accepts)
