"""pp ops that know nothing of images: keys, labels, shapes, choices.

Each serves one example's tensors and, in its second form, a batch of NumPy arrays; see `registry` for how.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import UserError
from core.pp.registry import OpFunctions, both, key_op, op


def _is_pipelines(key: str) -> bool:
  """Keys such as `_seed`, `_id` and `_mask` are the pipeline's: the ops on keys carry them through."""
  return key.startswith("_")


@op()
def keep(*keys):
  """Keeps `keys`, all of which must be there, and drops the others."""
  return both(lambda data: {key: data[key] for key in (*filter(_is_pipelines, data), *keys)})


@op()
def drop(*keys):
  """Drops `keys`, all of which must be there, and keeps the others."""

  def without(data):
    gone = {key: data[key] for key in keys if not _is_pipelines(key)}
    return {key: value for key, value in data.items() if key not in gone}

  return both(without)


@op()
def copy(inkey, outkey):
  """Puts the value of `inkey` under `outkey` too."""
  return both(lambda data: {**data, outkey: data[inkey]})


@op()
def rename(old, new):
  """Moves the value of `old` to `new`."""
  if _is_pipelines(old):
    raise UserError(f"{old!r} belongs to the pipeline; copy({old!r}, {new!r}) leaves it in place")
  return both(lambda data: {**{key: value for key, value in data.items() if key != old}, new: data[old]})


@op()
def flatten(sep="/"):
  """Flattens nested dicts: `{"a": {"b": x}}` becomes `{"a/b": x}`."""

  def leaves(prefix, value):
    if not isinstance(value, dict):
      return {prefix: value}
    return {path: leaf for key, item in value.items() for path, leaf in leaves(f"{prefix}{sep}{key}", item).items()}

  def flat(data):
    own = {key: value for key, value in data.items() if _is_pipelines(key)}
    return own | {k: v for key, value in data.items() if key not in own for k, v in leaves(key, value).items()}

  return both(flat)


@key_op()
def squeeze_last_dim():
  """Drops the last dimension, of size 1."""

  def check(value):
    if value.shape[-1] not in (1, None):
      raise UserError(f"the last dimension must be 1; the shape is {tuple(value.shape)}")

  def per_example(value):
    import tensorflow as tf

    check(value)
    return tf.squeeze(value, -1)

  def batched(values):
    check(values)
    return values[..., 0]

  return OpFunctions(per_example, batched)


@key_op()
def reshape(new_shape):
  """Gives each example the shape `new_shape`, of which one size may be -1."""
  shape = (new_shape,) if isinstance(new_shape, int) else tuple(new_shape)

  def per_example(value):
    import tensorflow as tf

    return tf.reshape(value, shape)

  return OpFunctions(per_example, lambda values: values.reshape((len(values), *shape)))


@op()
def onehot(depth, key="labels", key_result=None, multi=True, on=1.0, off=0.0):
  """Turns labels in [0, depth) into float32 vectors: `on` at the label, `off` elsewhere.

  Args:
    depth: the number of classes.
    key: where the label or labels of the example are.
    key_result: where the vector goes; `key` if None.
    multi: several labels (a 1-D array) give one vector with all of them on, in which -1 stands for no label; if False
      they give a vector each.
    on: value at a label.
    off: value elsewhere.

  A label that is out of range is refused when it comes by: it would otherwise be a row of zeros that nobody sees.
  """
  if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
    raise UserError(f"depth is the number of classes, got {depth!r}")

  def to_one_vector(rank):
    return multi and rank > 0

  def refuse_text():
    raise UserError(f"{key!r} holds text; labels are integers (the source jsonl makes them of names by classes=...)")

  def per_example(data):
    import tensorflow as tf

    if data[key].dtype == tf.string:
      refuse_text()
    labels = tf.cast(data[key], tf.int64)
    several = to_one_vector(labels.shape.rank)
    fine = (labels >= (-1 if several else 0)) & (labels < depth)
    message = f"pp op onehot: labels outside [0, {depth}) under key {key}:"
    # The raw op: `tf.debugging.assert_*` would cost a conditional an example.
    check = tf.raw_ops.Assert(condition=tf.reduce_all(fine), data=[message, labels], summarize=8)
    with tf.control_dependencies([check]):
      if several:
        # Slot `depth` takes the -1 of "no label" and is then cut off.
        slots = tf.where(labels < 0, tf.constant(depth, tf.int64), labels)[:, None]
        vectors = tf.tensor_scatter_nd_update(
          tf.fill([depth + 1], float(off)), slots, tf.fill(tf.shape(labels), float(on))
        )
        vectors = vectors[:depth]
      else:
        vectors = tf.one_hot(labels, depth, on_value=on, off_value=off, dtype=tf.float32)
    return {**data, key_result or key: vectors}

  def batched(data):
    if np.asarray(data[key]).dtype.kind in "OSU":
      refuse_text()
    labels = np.asarray(data[key]).astype(np.int64)
    several = to_one_vector(labels.ndim - 1)
    wrong = labels[(labels < (-1 if several else 0)) | (labels >= depth)]
    if wrong.size:
      raise UserError(f"labels outside [0, {depth}) under key {key!r}: {', '.join(map(str, np.unique(wrong)[:8]))}")
    vectors = np.full((*labels.shape[: 1 if several else None], depth + 1), off, np.float32)
    rows = np.arange(len(labels))[:, None] if several else np.indices(labels.shape, sparse=True)
    vectors[(rows, labels) if several else (*rows, labels)] = on
    return {**data, key_result or key: np.ascontiguousarray(vectors[..., :depth])}

  return OpFunctions(per_example, batched)


@op(random=True)
def choice(n="single", key=None, fewer_ok=False, inkey=None, outkey=None):
  """Picks random entries along the first axis of a key, or the same ones of several keys.

  Of several texts it picks a single one among those that are not empty, if any: lists of captions end in empty ones
  where others are longer.

  Args:
    n: "single" for one entry, the axis dropped; an integer for that many different entries, in the order they stand.
    key: the key, or a list of keys of equal length.
    fewer_ok: if fewer than `n` entries are there, take them all.
    inkey: instead of `key`, what to read ...
    outkey: ... and where to write.
  """
  sources, targets = _as_keys(inkey or key), _as_keys(outkey or key or inkey)
  if not sources or len(sources) != len(targets):
    raise UserError("wants key=, or inkey= and outkey= with as many keys each")
  if n != "single" and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
    raise UserError(f'n must be "single" or an integer above zero, got {n!r}')

  def check_length(length):
    if n != "single" and not fewer_ok and length < n:
      raise UserError(f"fewer than {n} entries under {sources[0]!r}: {length}")

  def per_example(data, rng):
    import tensorflow as tf

    first = data[sources[0]]
    length = tf.shape(first)[0]
    if n == "single":
      candidates = _filled_texts(first) if first.dtype == tf.string and first.shape.rank == 1 else tf.range(length)
      index = candidates[rng.integer(0, tf.size(candidates))]
    else:
      if first.shape[0] is not None:
        check_length(first.shape[0])
      elif not fewer_ok:
        message = f"pp op choice: fewer than {n} entries under {sources[0]}:"
        check = tf.raw_ops.Assert(condition=length >= n, data=[message, length])
        with tf.control_dependencies([check]):
          length = tf.identity(length)
      index = tf.sort(tf.argsort(rng.uniform(count=length), stable=True)[:n])
    picked = {target: tf.gather(data[source], index) for source, target in zip(sources, targets)}
    if n != "single" and not fewer_ok:
      picked = {target: tf.ensure_shape(value, [n, *value.shape[1:]]) for target, value in picked.items()}
    return {**data, **picked}

  def batched(data, rng):
    batch, length = data[sources[0]].shape[:2]
    rows = np.arange(batch)
    check_length(length)
    if n == "single":
      first = data[sources[0]]
      some = first.astype(bool) if first.dtype == object and first.ndim == 2 else np.ones((batch, length), bool)
      some |= ~some.any(axis=1, keepdims=True)
      candidates = np.argsort(~some, axis=1, kind="stable")
      index = candidates[rows, rng.integer(0, some.sum(axis=1))]
    else:
      index = np.sort(np.argsort(rng.uniform(count=length), axis=-1, kind="stable")[:, :n])
      rows = rows[:, None]
    return {**data, **{target: data[source][rows, index] for source, target in zip(sources, targets)}}

  return OpFunctions(per_example, batched)


def _filled_texts(texts: Any) -> Any:
  """The indices of texts that are not empty; of all, where all are."""
  import tensorflow as tf

  filled = tf.strings.length(texts) > 0
  return tf.where(filled | ~tf.reduce_any(filled))[:, 0]


def _as_keys(key: str | Sequence[str] | None) -> tuple[Any, ...]:
  return () if key is None else (key,) if isinstance(key, str) else tuple(key)
