"""Polyak averaging in little memory: an exponential moving average of the parameters, kept in the optimizer's state.

    config.ema = dict(decay=0.9999)                               # "compensated": 3 bytes a parameter
    config.ema = dict(decay=0.9999, rounding="stochastic")        # 2 bytes
    config.ema = dict(decay=0.9999, dtype="float32")              # 4 bytes
    config.ema = dict(decay=0.9999, sharding="fsdp")              # any of them, divided by the size of that mesh axis

    average       bytes  error (*)
    float32       4      0.000003   increments below half a unit in the last place are lost; here all are above
    compensated   3      0.0003     bfloat16 and the 8 bits after it, rounded up or down at random
    stochastic    2      0.016      bfloat16, rounded up or down at random
    nearest       2      0.87       bfloat16; nearly all increments are lost: for comparison only

    (*) Root mean square of the difference to a float64 average, relative to that of the average, after 20,000 steps of
        decay 0.9999 along a random walk with a drift, behind which the average lags (ema_test.py). Rounding the float64
        average to bfloat16 once costs 0.0017. `./bazelw run //tools/bench:ema` measures time, memory, and the error in
        training: on the digits at a constant rate (2,000 steps, decay 0.999, one seed), the parameters had a test
        accuracy of 88.6 %, their averages 95.3 % in each of the first three forms, and "nearest" 81.9 %.

A step moves the average by (1 - decay) (p - average), of which nothing is left when the sum is rounded to bfloat16's 8
bits. Rounded up or down at random, with the probabilities that make the expectation exact (Gupta et al. 2015,
arXiv:1502.02551), no increment is lost on average, and the pull towards p holds the errors near
sqrt(|p - average| ulp / 2): they shrink as training settles, and by 16 with 8 bits more. Kahan's summation with a
second bfloat16 tree would cost as much as float32 and still lose increments, to the 8 bits of the correction itself.

The random bits are a hash of the step, the leaf's number and the element's index: equal after a resume and under any
sharding, and computed where they are used. (Threefry's take 50 times as long on a CPU, and 16 bytes a parameter.)
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, BFloat16, Float, Int, Int8, UInt32

from core import trees
from core.errors import UserError, nearest
from core.recipe import words
from core.recipe.ema import Ema


class EmaState(NamedTuple):
  """The average after `count` updates.

  Attributes:
    count: int32.
    average: a tree like the parameters, under their names; float32 or bfloat16.
    remainder: the same in int8, units of 2^-8 of bfloat16's last place; without "compensated" an empty state.
  """

  count: Int[Array, ""]
  average: trees.PyTree
  remainder: trees.PyTree


def from_recipe(
  options: Ema | None, params: trees.PyTree, trainable: trees.PyTree, *, sched_kw: Mapping[str, Any], seed: int = 0
) -> optax.GradientTransformation | None:
  """Returns the last part of the optimizer's chain where a config asks for an average, else None.

  Args:
    options: of the average.
    params: the parameters or their shapes. Where the average is sharded on its own, they tell the parameters' sharding.
    trainable: a tree of booleans like the parameters. The others need no average: they are their own.
    sched_kw: total_steps, batch_size and data_size.
    seed: of the random rounding.

  Raises:
    UserError: the start cannot be turned into steps, or training ends before it.
  """
  if options is None:
    return None
  start, total = options.start.steps(**sched_kw), sched_kw["total_steps"]
  if start >= total:
    raise UserError(f"{options.start.key}: {start:,} steps leave none of the {total:,} steps of training to average")
  of_params = None
  if options.sharding is not None:
    of_params = jax.tree.map(lambda p, mine: _named_sharding(p) if mine else optax.MaskedNode(), params, trainable)
  average = track(
    options.decay,
    dtype=options.dtype,
    rounding=options.rounding or ("compensated" if options.dtype == "bfloat16" else "nearest"),
    warmup=options.warmup,
    start_step=start,
    seed=seed,
    of_params=of_params,
  )
  return optax.masked(average, trainable)


def track(
  decay: float,
  *,
  dtype: str = "bfloat16",
  rounding: str = "compensated",
  warmup: bool = True,
  start_step: int = 0,
  seed: int = 0,
  of_params: trees.PyTree | None = None,
) -> optax.GradientTransformation:
  """Returns what leaves updates as they are and averages the parameters that they lead to: the last of a chain.

  With p_n the parameters after update n = 1, 2, ... (Polyak & Juditsky 1992, in the exponential form):

      average_0 = p_0;  average_n = average_(n-1) + w_n (p_n - average_(n-1))
      w_n = 1 - decay, or with `warmup` max(1 - decay, 9 / (9 + n)), by which early parameters are forgotten quickly

  Before `start_step` the average is the parameters themselves, and n counts from there. With `warmup` the weight of p_0
  falls as n^-9: no further correction of its bias is needed. Without it, p_0 counts for decay^n, as it is usual.

  Args:
    decay: in [0, 1).
    dtype: of the average, "bfloat16" or "float32"; it is computed in float32.
    rounding: "stochastic", "compensated" or "nearest"; of no meaning for float32.
    warmup: see above.
    start_step: updates before averaging begins.
    seed: of the random rounding.
    of_params: the shardings of the parameters (`NamedSharding` or None), to be given where that of the average differs:
      else the compiler, to save work, computes the updates as the average is sharded, and gathers them every step.
  """
  compensated = dtype == "bfloat16" and rounding == "compensated"

  def init(params):
    average, remainder = jax.tree.map(lambda p: p.astype(dtype), params), optax.EmptyState()
    if compensated:
      split = jax.tree.map(lambda p: _split(_bits(p.astype(jnp.float32)) >> 8), params)
      average, remainder = _transpose(params, split)
    return EmaState(jnp.zeros([], jnp.int32), average, remainder)

  def update(updates, state, params=None):
    if params is None:
      raise ValueError("an average of the parameters needs them: call update(updates, state, params)")
    weight = _weight(state.count - start_step + 1, decay, warmup=warmup)
    key = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), state.count))
    numbers = iter(range(len(jax.tree.leaves(params))))

    def leaf(average, p, remainder=None):
      noise = functools.partial(_random_bits, key, next(numbers), p.shape)
      return _moved(average, remainder, p, weight, rounding=rounding, noise=noise)

    params = optax.apply_updates(params, updates)
    if of_params is not None:
      params = jax.tree.map(_held_as, params, of_params)
    if compensated:
      average, remainder = _transpose(params, jax.tree.map(leaf, state.average, params, state.remainder))
    else:
      average, remainder = jax.tree.map(leaf, state.average, params), state.remainder
    return updates, EmaState(optax.safe_increment(state.count), average, remainder)

  return optax.GradientTransformation(init, update)


def _weight(n: Int[Array, ""], decay: float, *, warmup: bool) -> Float[Array, ""]:
  """Returns w_n, the weight of the parameters after the n-th update that is averaged; 1 before the first."""
  n = n.astype(jnp.float32)
  weight = jnp.maximum(1 - decay, 9 / (9 + n)) if warmup else jnp.float32(1 - decay)
  return jnp.where(n > 0, weight, 1.0)


def _moved(
  average: Float[Array, "..."],
  remainder: Int8[Array, "..."] | None,
  p: Float[Array, "..."],
  weight: Float[Array, ""],
  *,
  rounding: str,
  noise: Callable[[], UInt32[Array, "..."]],
) -> Float[Array, "..."] | tuple[BFloat16[Array, "..."], Int8[Array, "..."]]:
  """Returns an average moved towards `p`, rounded; with a remainder both.

  Args:
    average: of one parameter.
    remainder: what is missing in the average; only where it is compensated.
    p: the parameter.
    weight: of the parameter.
    rounding: to bfloat16; of no meaning for an average in float32.
    noise: returns random bits for each element.
  """
  old = average.astype(jnp.float32) if remainder is None else _joined(average, remainder)
  p = p.astype(jnp.float32)
  # The form of a difference: p = average stays where it is to the last bit.
  new = jnp.where(weight < 1, old + weight * (p - old), p)
  if remainder is not None:
    return _split(_rounded_up_at_random(new, noise() >> 24) >> 8)
  if average.dtype == jnp.bfloat16 and rounding == "stochastic":
    return _as_bfloat16(_rounded_up_at_random(new, noise() >> 16) >> 16)
  return new.astype(average.dtype)


def state_of(opt_state: trees.PyTree) -> EmaState | None:
  """Returns the average's state, wherever in an optimizer's state it stands; None where none is kept."""
  found = [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(leaf)]
  return found[0] if found else None


def params_of(opt_state: trees.PyTree, params: trees.PyTree) -> trees.PyTree:
  """Returns the averaged parameters, in the dtypes of `params`; frozen ones, of which none is kept, are its own.

  Arrays of the whole tree's size are made: under `jax.jit` with `out_shardings`, each where the parameters live.

  Raises:
    UserError: `opt_state` holds no average.
  """
  state = state_of(opt_state)
  if state is None:
    raise UserError("the optimizer keeps no average of the parameters; set config.ema=dict(decay=0.9999), say")

  def leaf(p, average, remainder=None):
    if isinstance(average, optax.MaskedNode):
      return p
    return (average if remainder is None else _joined(average, remainder)).astype(p.dtype)

  if isinstance(state.remainder, optax.EmptyState):
    return jax.tree.map(leaf, params, state.average)
  return jax.tree.map(leaf, params, state.average, state.remainder)


def shardings(options: Ema | None, of_state: trees.PyTree, state: trees.PyTree) -> trees.PyTree:
  """Returns `of_state` with the average split over the mesh axis `options.sharding`, also where parameters are not.

  An update needs no communication for it: each device averages its part of the parameters, which it has. The whole
  average is gathered where it is used, in an evaluation. Arrays that no dimension divides stay as they are.

  Args:
    options: of the average; without them, or without an axis, everything stays as it is.
    of_state: a `NamedSharding` for each leaf of `state`, that of its parameter say (`core.sharding.follow_params`).
    state: a train or optimizer state, or its shapes.

  Raises:
    UserError: the mesh has no such axis.
  """
  axis = options and options.sharding
  if axis is None:
    return of_state

  def split(where: EmaState | NamedSharding, what: Any) -> EmaState | NamedSharding:
    if not _is_state(what):
      return where
    further = functools.partial(_split_over, axis=axis)
    parts = (jax.tree.map(further, *pair) for pair in zip(where[1:], what[1:]))
    return EmaState(where.count, *parts)

  return jax.tree.map(split, of_state, state, is_leaf=_is_state)


def _split_over(where: NamedSharding, what: Any, *, axis: str) -> NamedSharding:
  """Returns a sharding also over `axis`, along the largest dimension that is whole and divides, if there is one."""
  mesh = where.mesh
  if axis not in mesh.axis_names:
    line = f"config.ema.sharding: the mesh has no axis {words.shown(axis)}{nearest(axis, mesh.axis_names)}"
    raise UserError(line)
  spec = [*where.spec, *[None] * (len(what.shape) - len(where.spec))]
  used = {name for names in spec for name in (names if isinstance(names, tuple) else (names,))}
  free = [i for i, size in enumerate(what.shape) if spec[i] is None and size % mesh.shape[axis] == 0]
  if axis in used or not free:
    return where
  spec[max(free, key=lambda i: (what.shape[i], i))] = axis
  return NamedSharding(mesh, PartitionSpec(*spec))


def _named_sharding(p: Any) -> NamedSharding | None:
  where = getattr(p, "sharding", None)
  return where if isinstance(where, NamedSharding) else None


def _held_as(p: Float[Array, "..."], where: NamedSharding | None) -> Float[Array, "..."]:
  return p if where is None else jax.lax.with_sharding_constraint(p, where)


def _is_state(x: Any) -> bool:
  return isinstance(x, EmaState)


def _transpose(params: trees.PyTree, pairs: trees.PyTree) -> tuple[trees.PyTree, trees.PyTree]:
  """Returns a tree of pairs as a pair of trees."""
  return jax.tree.transpose(jax.tree.structure(params), jax.tree.structure((0, 0)), pairs)


# Floats as integers. A float's bits, sign aside, are in the order of its size, and a carry moves into the exponent as
# it should: adding to them and cutting them off is rounding.


def _bits(x: Float[Array, "..."]) -> UInt32[Array, "..."]:
  return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _rounded_up_at_random(x: Float[Array, "..."], noise: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """Returns the bits of x plus noise of as many bits as will be cut off; infinities and NaN have nowhere to go."""
  return _bits(x) + jnp.where(jnp.isfinite(x), noise, 0)


def _as_bfloat16(upper: UInt32[Array, "..."]) -> BFloat16[Array, "..."]:
  return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)


def _split(upper: UInt32[Array, "..."]) -> tuple[BFloat16[Array, "..."], Int8[Array, "..."]]:
  """Returns the upper 24 bits of a float32 as the nearest bfloat16 and what is missing, in 2^-8 of its last place."""
  return _as_bfloat16((upper + 0x80) >> 8), jax.lax.bitcast_convert_type(upper.astype(jnp.uint8), jnp.int8)


def _joined(average: BFloat16[Array, "..."], remainder: Int8[Array, "..."]) -> Float[Array, "..."]:
  """Returns the float32 that `_split` took apart."""
  upper = jax.lax.bitcast_convert_type(average, jnp.uint16).astype(jnp.uint32) << 8
  upper = upper + remainder.astype(jnp.int32).astype(jnp.uint32)  # Two's complement: adds what is negative, too.
  return jax.lax.bitcast_convert_type(upper << 8, jnp.float32)


def _random_bits(key: UInt32[Array, "2"], number: int, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
  """Returns 32 bits for each element of the leaf `number`: a hash of key, number and index, whatever the sharding."""
  index, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
    stride *= shape[axis]
  return _mixed(_mixed(index + _mixed(key[0] + jnp.uint32(number))) + key[1])


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """Permutes the 32-bit numbers such that each input bit flips each output bit in about half of all cases.

  Two rounds of multiplying and folding, with the constants of Wellons' search for hash functions of little bias.
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
