"""pp ops on the keys of an example: which are there, under which name, and what a key holds that is not there.

Each serves one example's tensors and, in its second form, a batch of NumPy arrays; see `registry` for how.
"""

from typing import Any

import numpy as np
from jaxtyping import Shaped

from core.errors import UserError
from core.pp.arguments import Entry, Key, Keys, NewKey
from core.pp.held import Held, of_batch, of_example
from core.pp.registry import OpFunctions, both, op


def _is_pipelines(key: str) -> bool:
  """Tells whether a key such as `_seed`, `_id` or `_mask` is the pipeline's: the ops on keys carry it through."""
  return key.startswith("_")


def _require_some(keys: tuple[str, ...]) -> None:
  if not keys:
    raise UserError("wants at least one key")


@op()
def keep(*keys: Key):
  """Keeps those of `keys` that are there, of which there must be one, and drops all others."""
  _require_some(keys)

  def kept(data):
    there = [key for key in keys if key in data] or keys[:1]  # Of none the first is refused, by the example.
    return {key: data[key] for key in (*filter(_is_pipelines, data), *there)}

  return both(kept)


@op()
def drop(*keys: Key):
  """Drops those of `keys` that are there, and keeps all others."""
  _require_some(keys)

  def without(data):
    return {key: value for key, value in data.items() if key not in keys or _is_pipelines(key)}

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
def flatten(keys: Keys | None = None, sep: Key = "/"):
  """Flattens nested dicts: `{"a": {"b": x}}` becomes `{"a/b": x}`.

  Args:
    keys: the key, or a list of keys, whose dicts are; all others stay as they are. None: all.
    sep: text between the names.
  """
  only = None if keys is None else as_keys(keys)

  def leaves(prefix, value):
    if not isinstance(value, dict):
      return [(prefix, value)]
    return [leaf for key, item in value.items() for leaf in leaves(f"{prefix}{sep}{key}", item)]

  def flat(data):
    chosen = {key: data[key] for key in (data if only is None else only) if not _is_pipelines(key)}
    own = {key: value for key, value in data.items() if _is_pipelines(key)}
    found: dict[str, Any] = {key: value for key, value in data.items() if key not in own and key not in chosen}
    for path, leaf in (leaf for key, value in chosen.items() for leaf in leaves(key, value)):
      if path in found:
        raise UserError(f"two values would be called {path!r}; give another sep")
      found[path] = leaf
    return own | found

  return both(flat)


@op()
def setdefault(key: NewKey, value: Entry | tuple[Entry, ...]):
  """Puts `value` under `key` where that is not there, or holds no entry.

  Args:
    key: which.
    value: a number or a text, or a list of them, int32, float32 or text; in the place of no entries (size 0) it takes
      their type, and fills their shape with each 0 in it for a 1.
  """
  default = _array_of(value)

  def per_example(data):
    import tensorflow as tf

    if key not in data:
      return {**data, key: tf.constant(default)}
    fill = _filling(of_example(data[key]), default, key)
    if fill is None:
      return data
    there, fill = data[key], tf.constant(fill, data[key].dtype)
    known = there.shape.is_fully_defined()  # Then it is known to be empty.
    return {**data, key: fill if known else tf.cond(tf.size(there) > 0, lambda: there, lambda: fill)}

  def batched(data):
    fill = _filling(of_batch(data[key]), default, key) if key in data else default
    if fill is None:
      return data
    return {**data, key: np.broadcast_to(fill, (examples_in(data), *fill.shape)).copy()}

  return OpFunctions(per_example, batched)


def as_keys(key: str | tuple[str, ...]) -> tuple[str, ...]:
  """Returns the keys of an argument that is a key or a list of them."""
  return (key,) if isinstance(key, str) else key


def _array_of(value: Any) -> Shaped[np.ndarray, "..."]:
  entries = value if isinstance(value, tuple) else (value,)
  if not entries or len({isinstance(entry, str) for entry in entries}) > 1:
    raise UserError(f"value is a number, a text, or a list of numbers or of texts, got {value!r}")
  if isinstance(entries[0], str):
    array = np.array([entry.encode() for entry in entries], object)
  else:
    array = np.array(entries, np.int32 if all(isinstance(entry, int) for entry in entries) else np.float32)
  return array if isinstance(value, tuple) else array.reshape(())


def _filling(held: Held, default: Shaped[np.ndarray, "..."], key: str) -> Shaped[np.ndarray, "..."] | None:
  """Returns what stands in the place of no entries; None where some are held."""
  if held.dtype == "a dict" or held.shape is None:
    raise UserError(f"{key!r} holds {held}, which setdefault does not fill")
  if None not in held.shape and 0 not in held.shape:
    return None
  if held.is_text != (default.dtype == object):
    raise UserError(f"value is no {held.dtype}, and {key!r} holds {held}")
  try:
    fill = np.broadcast_to(default, [size or 1 for size in held.shape])
  except ValueError:
    raise UserError(f"value has the shape {list(default.shape)}, and {key!r} holds {held}") from None
  if held.is_text:
    return fill
  typed = fill.astype(held.dtype)
  if held.is_integer and (typed != fill).any():
    raise UserError(f"value is no {held.dtype}, and {key!r} holds {held}")
  return typed


def examples_in(batch: dict[str, Any]) -> int:
  """Returns how many examples a batch is of."""
  values = list(batch.values())
  while values and isinstance(values[0], dict):
    values = [*values[0].values(), *values[1:]]
  if not values:
    raise UserError("the batch has no other key, and so no examples")
  return len(values[0])
