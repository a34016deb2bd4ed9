"""pp ops that pick some of several entries: captions, boxes.

Each serves one example's tensors and, in its second form, a batch of NumPy arrays, where what is picked has one size.
"""

import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Shaped

from core.errors import UserError
from core.pp import text as text_lib
from core.pp.arguments import Entries, Keys, NewKeys
from core.pp.held import require_entries
from core.pp.ops_general import as_keys
from core.pp.registry import OpFunctions, op
from core.pp.rng import Rng

# An odd number whose multiples are far from each other: 2**64 / the golden ratio (Knuth 1998, section 6.4), signed.
_FAR = 0x9E3779B97F4A7C15 - 2**64


@op(random=True)
def choice(
  n: Literal["single"] | Entries | tuple[Entries, Entries] = "single",
  key: Keys | None = None,
  fewer_ok: bool = False,
  inkey: Keys | None = None,
  outkey: NewKeys | None = None,
):
  """Picks random entries along the first axis of a key, or the same ones of several keys.

  Of several texts it picks a single one among those that are not empty, if any: lists of captions end in empty ones
  where others are longer.

  Args:
    n: "single" for one entry, the axis dropped; an integer for that many different entries, in the order they stand;
      [min, max] for a random number of them, both included.
    key: the key, or a list of keys of equal length.
    fewer_ok: if fewer than `n` entries are there, take them all.
    inkey: instead of `key`, what to read ...
    outkey: ... and where to write. `{key}` in it stands for what is read.
  """
  sources, targets = _sources_and_targets(key, inkey, outkey)
  if isinstance(n, tuple) and n[0] > n[1]:
    raise UserError(f"n is [min, max], got {n!r}")
  least = 1 if n == "single" or fewer_ok else n[0] if isinstance(n, tuple) else n

  def per_example(data, rng):
    import tensorflow as tf

    index = _index_of_example(data[sources[0]], sources[0], n, least, rng)
    picked = {target: tf.gather(data[source], index) for source, target in zip(sources, targets)}
    if isinstance(n, int) and not fewer_ok:
      picked = {target: tf.ensure_shape(value, [n, *value.shape[1:]]) for target, value in picked.items()}
    return {**data, **picked}

  def batched(data, rng):
    rows, index = _index_of_batch(data[sources[0]], n, rng)
    return {**data, **{target: data[source][rows, index] for source, target in zip(sources, targets)}}

  return OpFunctions(per_example, None if isinstance(n, tuple) else batched, _acceptance(sources, least))


@op()
def choice_no_replacement(key: Keys | None = None, inkey: Keys | None = None, outkey: NewKeys | None = None):
  """Picks an entry along the first axis of a key, or the same one of several keys: another in every epoch.

  An example that comes again gives each of its entries once before it gives one again, and then in another order. It
  follows from the example's `_id` and the `_epoch`, of which training gives both: a resumed run goes on with the same.
  Runs of other seeds see the same. An evaluation is in epoch 0.

  Args:
    key: see `choice`, as those that follow.
    inkey: ...
    outkey: ...
  """
  sources, targets = _sources_and_targets(key, inkey, outkey)
  stream = zlib.crc32("\0".join(targets).encode())  # Two ops of a string go through their entries apart.

  def index_of(data, length):
    passes, place = data["_epoch"] // length, data["_epoch"] % length
    order = Rng(data["_id"] + passes * _FAR).fold_in(stream).uniform(count=length)
    return order, place

  def per_example(data):
    import tensorflow as tf

    length = _checked_length(data[sources[0]], sources[0], 1, "choice_no_replacement")
    order, place = index_of(
      {name: tf.cast(data[name], tf.int64) for name in ("_id", "_epoch")}, tf.cast(length, tf.int64)
    )
    index = tf.argsort(order, stable=True)[place]
    return {**data, **{target: tf.gather(data[source], index) for source, target in zip(sources, targets)}}

  def batched(data):
    rows = np.arange(len(data[sources[0]]))
    order, place = index_of(
      {name: np.asarray(data[name], np.int64) for name in ("_id", "_epoch")}, data[sources[0]].shape[1]
    )
    index = np.argsort(order, axis=-1, kind="stable")[rows, place]
    return {**data, **{target: data[source][rows, index] for source, target in zip(sources, targets)}}

  accepts = _acceptance(sources, 1)
  return OpFunctions(per_example, batched, accepts)


def _sources_and_targets(key: Any, inkey: Any, outkey: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Returns which keys are read and which are written.

  Raises:
    UserError: none is read, not as many are written, or one of the pipeline's is.
  """
  sources, targets = as_keys(inkey or key or ()), as_keys(outkey or key or inkey or ())
  if not sources or len(sources) != len(targets):
    raise UserError("wants key=, or inkey= and outkey= with as many keys each")
  if key and inkey and outkey:
    raise UserError("key has no meaning beside inkey and outkey; leave it out")
  targets = tuple(target.replace("{key}", source) for source, target in zip(sources, targets))
  if own := [target for target in targets if target.startswith("_")]:
    raise UserError(f"{own[0]!r} belongs to the pipeline; give another outkey")
  return sources, targets


def _acceptance(sources: tuple[str, ...], least: int) -> Callable[[Any], None]:
  """Returns the function that refuses keys without entries, with fewer than `least`, or with unlike numbers of them."""

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

  return accepts


def _index_of_example(first: Any, key: str, n: Any, least: int, rng: Rng) -> Any:
  """Returns which entry, or entries, of one example's tensor are drawn; refuses too few when they come by."""
  import tensorflow as tf

  length = _checked_length(first, key, least, "choice")
  if n == "single":
    candidates = text_lib.filled(first) if first.dtype == tf.string and first.shape.rank == 1 else tf.range(length)
    return candidates[rng.integer(0, tf.size(candidates))]
  count = rng.integer(n[0], n[1] + 1) if isinstance(n, tuple) else n
  return tf.sort(tf.argsort(rng.uniform(count=length), stable=True)[:count])


def _checked_length(first: Any, key: str, least: int, name: str) -> Any:
  """Returns how many entries one example's tensor has; refuses too few when they come by."""
  import tensorflow as tf

  length = tf.shape(first)[0]
  if first.shape[0] is not None:
    return length
  message = f"pp op {name}: fewer than {least} entries under {key!r}:"
  check = tf.raw_ops.Assert(condition=length >= least, data=[message, length])
  with tf.control_dependencies([check]):
    return tf.identity(length)


def _index_of_batch(
  first: Shaped[np.ndarray, "batch entries ..."], n: int | str, rng: Rng
) -> tuple[Int[np.ndarray, "batch ..."], Int[np.ndarray, "batch ..."]]:
  """Returns rows, and which entry or entries of each are drawn, to index a batch of arrays with."""
  batch, length = first.shape[:2]
  rows = np.arange(batch)
  if n == "single":
    some = first.astype(bool) if first.dtype == object and first.ndim == 2 else np.ones((batch, length), bool)
    return rows, text_lib.one_of(some, rng)
  return rows[:, None], np.sort(np.argsort(rng.uniform(count=length), axis=-1, kind="stable")[:, :n])
