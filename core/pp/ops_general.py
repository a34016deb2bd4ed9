"""pp ops that know nothing of images: keys, shapes, choices.

Each serves one example's tensors and, in its second form, a batch of NumPy arrays; see `registry` for how.
"""

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Shaped

from core.errors import UserError
from core.pp.arguments import Entries, Index, Key, Keys, NewKey, NewKeys
from core.pp.held import Held, require_entries
from core.pp.registry import OpFunctions, both, key_op, op
from core.pp.rng import Rng


def _is_pipelines(key: str) -> bool:
  """Tells whether a key such as `_seed`, `_id` or `_mask` is the pipeline's: the ops on keys carry it through."""
  return key.startswith("_")


def _require_some(keys: tuple[str, ...]) -> None:
  if not keys:
    raise UserError("wants at least one key")


@op()
def keep(*keys: Key):
  """Keeps `keys`, all of which must be there, and drops the others."""
  _require_some(keys)

  def kept(data):
    return {key: data[key] for key in (*filter(_is_pipelines, data), *keys)}

  return both(kept)


@op()
def drop(*keys: Key):
  """Drops `keys`, all of which must be there, and keeps the others."""
  _require_some(keys)

  def without(data):
    gone = {key: data[key] for key in keys if not _is_pipelines(key)}
    return {key: value for key, value in data.items() if key not in gone}

  return both(without)


@op()
def copy(inkey: Key, outkey: NewKey):
  """Puts the value of `inkey` under `outkey` too."""

  def copied(data):
    return {**data, outkey: data[inkey]}

  return both(copied)


@op()
def rename(old: Key, new: NewKey):
  """Moves the value of `old` to `new`."""
  if _is_pipelines(old):
    raise UserError(f"{old!r} belongs to the pipeline; copy({old!r}, {new!r}) leaves it in place")

  def renamed(data):
    return {**{key: value for key, value in data.items() if key != old}, new: data[old]}

  return both(renamed)


@op()
def flatten(sep: Key = "/"):
  """Flattens nested dicts: `{"a": {"b": x}}` becomes `{"a/b": x}`.

  Args:
    sep: text between the names.
  """

  def leaves(prefix, value):
    if not isinstance(value, dict):
      return [(prefix, value)]
    return [leaf for key, item in value.items() for leaf in leaves(f"{prefix}{sep}{key}", item)]

  def flat(data):
    own = {key: value for key, value in data.items() if _is_pipelines(key)}
    found: dict[str, Any] = {}
    for path, leaf in (leaf for key, value in data.items() if key not in own for leaf in leaves(key, value)):
      if path in found:
        raise UserError(f"two values would be called {path!r}; give another sep")
      found[path] = leaf
    return own | found

  return both(flat)


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


@op(random=True)
def choice(
  n: Literal["single"] | Entries = "single",
  key: Keys | None = None,
  fewer_ok: bool = False,
  inkey: Keys | None = None,
  outkey: NewKeys | None = None,
):
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
  if key and inkey and outkey:
    raise UserError("key has no meaning beside inkey and outkey; leave it out")
  if own := [target for target in targets if _is_pipelines(target)]:
    raise UserError(f"{own[0]!r} belongs to the pipeline; give another outkey")
  least = 1 if n == "single" or fewer_ok else n

  def accepts(held):
    all_held = [held(source) for source in sources]
    for source, each in zip(sources, all_held):
      require_entries(each, source)
    for source, length in zip(sources, (each.shape[0] for each in all_held)):
      if length is not None and length < least:
        raise UserError(f"fewer than {least} entries under {source!r}: {length}")
    known = {each.shape[0] for each in all_held} - {None}
    if len(known) > 1:
      raise UserError(f"{', '.join(map(repr, sources))} hold different numbers of entries: {sorted(known)}")

  def per_example(data, rng):
    import tensorflow as tf

    index = _index_of_example(data[sources[0]], sources[0], n, least, rng)
    picked = {target: tf.gather(data[source], index) for source, target in zip(sources, targets)}
    if n != "single" and not fewer_ok:
      picked = {target: tf.ensure_shape(value, [n, *value.shape[1:]]) for target, value in picked.items()}
    return {**data, **picked}

  def batched(data, rng):
    rows, index = _index_of_batch(data[sources[0]], n, rng)
    return {**data, **{target: data[source][rows, index] for source, target in zip(sources, targets)}}

  return OpFunctions(per_example, batched, accepts)


def _index_of_example(first: Any, key: str, n: int | str, least: int, rng: Rng) -> Any:
  """Returns which entry, or entries, of one example's tensor are drawn; refuses too few when they come by."""
  import tensorflow as tf

  length = tf.shape(first)[0]
  if first.shape[0] is None:
    message = f"pp op choice: fewer than {least} entries under {key!r}:"
    check = tf.raw_ops.Assert(condition=length >= least, data=[message, length])
    with tf.control_dependencies([check]):
      length = tf.identity(length)
  if n == "single":
    candidates = _filled_texts(first) if first.dtype == tf.string and first.shape.rank == 1 else tf.range(length)
    return candidates[rng.integer(0, tf.size(candidates))]
  return tf.sort(tf.argsort(rng.uniform(count=length), stable=True)[:n])


def _index_of_batch(
  first: Shaped[np.ndarray, "batch entries ..."], n: int | str, rng: Rng
) -> tuple[Int[np.ndarray, "batch ..."], Int[np.ndarray, "batch ..."]]:
  """Returns rows, and which entry or entries of each are drawn, to index a batch of arrays with."""
  batch, length = first.shape[:2]
  rows = np.arange(batch)
  if n == "single":
    some = first.astype(bool) if first.dtype == object and first.ndim == 2 else np.ones((batch, length), bool)
    some |= ~some.any(axis=1, keepdims=True)
    candidates = np.argsort(~some, axis=1, kind="stable")
    return rows, candidates[rows, rng.integer(0, some.sum(axis=1))]
  return rows[:, None], np.sort(np.argsort(rng.uniform(count=length), axis=-1, kind="stable")[:, :n])


def _filled_texts(texts: Any) -> Any:
  """Returns the indices of texts that are not empty; of all, where all are."""
  import tensorflow as tf

  filled = tf.strings.length(texts) > 0
  return tf.where(filled | ~tf.reduce_any(filled))[:, 0]


def _as_keys(key: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return () if key is None else (key,) if isinstance(key, str) else key
