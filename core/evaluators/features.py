"""What a model computes on the way, for every example of a dataset, on the host and in the order of the split."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from core import sharding as sharding_lib
from core import trees
from core.data import feed, pipeline
from core.errors import UserError, nearest
from core.evaluators import batches
from core.state import Batch, Params, Predict

POOLS = ("mean", "first", "flatten")

Outputs = dict[str, np.ndarray]


class Extractor:
  """Rows of a function's outputs, computed on the devices and brought to the host of every process.

  Args:
    fn: `(params, batch) -> {name: [batch, ...]}`, traced by JAX and compiled once.
    sharding: how a batch lies on the devices.
  """

  def __init__(self, fn: Callable[[Params, Batch], Mapping[str, Array]], sharding: NamedSharding):
    self._sharding = sharding
    # A whole copy on every device, so that each process can read all rows, those of the other processes, too.
    self._fn = jax.jit(_with_ids(fn), out_shardings=sharding_lib.replicated(sharding.mesh))

  def shapes(self, params: Params, data: pipeline.EvalInput) -> dict[str, jax.ShapeDtypeStruct]:
    """The outputs for one batch, not computed; `params` may be shapes, too.

    Raises:
      UserError: the data cannot be read or do not fit `fn`, or an output has not one row an example.
    """
    with feed.to_devices(data, self._sharding) as fed:
      batch = next(fed)
    made = jax.eval_shape(self._fn, params, batch)
    size = made.pop("_id").shape[0]
    for name, shape in made.items():
      if shape.shape[:1] != (size,):
        raise UserError(f"evals: {name} has shape {shape.shape}, which is not one row for each of {size} examples")
    return made

  def pieces(self, params: Params, data: pipeline.EvalInput) -> Iterator[tuple[Int[np.ndarray, "rows"], Outputs]]:
    """(indices in the split, outputs of these examples), a batch at a time and without padding.

    Close it when leaving early (`contextlib.closing`).
    """
    with feed.to_devices(data, self._sharding) as fed:
      waiting = None
      for batch in fed:
        # The host takes in one batch's rows while the devices compute the next.
        computing = self._fn(params, batch)
        if waiting is not None:
          yield _real_rows(waiting)
        waiting = computing
      yield _real_rows(waiting)

  def whole(
    self, params: Params, data: pipeline.EvalInput, interrupted: Callable[[], bool] = lambda: False
  ) -> Outputs | None:
    """All outputs, each [examples of the split, ...] in its order; None if `interrupted()` became true on the way."""
    found: Outputs = {}
    pieces = self.pieces(params, data)
    try:
      for ids, rows in pieces:
        for name, values in rows.items():
          if name not in found:
            found[name] = np.empty((data.num_examples, *values.shape[1:]), values.dtype)
          found[name][ids] = values
        if interrupted():
          return None
    finally:
      pieces.close()
    return found


@functools.lru_cache(maxsize=64)  # As `layer_features`.
def _with_ids(fn: Callable[[Params, Batch], Mapping[str, Array]]) -> Callable[[Params, Batch], dict[str, Array]]:
  return lambda params, batch: {**fn(params, batch), "_id": batch["_id"]}


def _real_rows(made: Mapping[str, jax.Array]) -> tuple[Int[np.ndarray, "rows"], Outputs]:
  outputs = jax.device_get(dict(made))
  ids = outputs.pop("_id")
  real = ids >= 0
  return ids[real], {name: values[real] for name, values in outputs.items()}


def named_outputs(predict: Predict, params: Params, batch: Batch) -> dict[str, Array]:
  """What a prediction gives, by name: `output` (`output/NAME` if it is a dict), and the intermediates by their path."""
  output, *rest = predict(params, batch)
  found = dict(trees.flatten_with_names(rest[-1] if rest else {}))
  named = trees.flatten_with_names({"output": output})
  return {**found, **dict(named)}


@functools.lru_cache(maxsize=64)  # Evaluators that differ in their data alone are one program, compiled once.
def layer_features(
  predict: Predict, layers: tuple[str, ...], *, pool: str | None, keys: tuple[str, ...]
) -> Callable[[Params, Batch], dict[str, Array]]:
  """A function for `Extractor`: `{layer: float32 [batch, channels]}` and the entries `keys` of the batch.

  Args:
    predict: `(params, batch) -> (output, intermediates)`.
    layers: names in `named_outputs`: `pre_logits`, `encoder/block05/+mlp`, `output`.
    pool: what becomes of the axes between the first and the last, of tokens or places: their "mean", the "first" token
      (a class token), or "flatten" for a long vector. None: a layer with such axes is refused.
    keys: entries of the batch.
  """
  if pool is not None and pool not in POOLS:
    raise UserError(f"evals.pool must be one of {', '.join(POOLS)}; got {pool!r}")

  def features(params: Params, batch: Batch) -> dict[str, Array]:
    batches.require(batch, "image", *keys)
    found = named_outputs(predict, params, batch)
    for layer in layers:
      if layer not in found:
        raise UserError(f"evals: the model has no layer {layer!r}{near_name(layer, found)}")
    return {layer: _pooled(found[layer], pool, layer) for layer in layers} | {key: batch[key] for key in keys}

  return features


def _pooled(x: Float[Array, "batch *places channels"], pool: str | None, layer: str) -> Float[Array, "batch channels"]:
  if x.ndim < 2:
    raise UserError(f"evals: layer {layer!r} has shape {x.shape}, which is not one vector an example")
  x = x.astype(jnp.float32)
  if x.ndim == 2:
    return x
  match pool:
    case "mean":
      return x.mean(axis=range(1, x.ndim - 1))
    case "first":
      return x.reshape(x.shape[0], -1, x.shape[-1])[:, 0]
    case "flatten":
      return x.reshape(x.shape[0], -1)
    case _:
      raise UserError(
        f"evals: layer {layer!r} has shape {x.shape[1:]} an example; pool='mean', 'first' or 'flatten' makes a vector"
      )


def near_name(name: str, found: Iterable[str]) -> str:
  """As `core.errors.nearest`, but names that differ only in a block's number are listed once."""
  close = nearest(name, found := sorted(found))
  if close.startswith(" (did"):
    return close
  once = {re.sub(r"\d+", "#", each): each for each in reversed(found)}
  return nearest(name, once.values())
