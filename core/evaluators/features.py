"""What a model computes for every example of a dataset, on the host and in the order of the split."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Shaped

from core import sharding as sharding_lib
from core import trees
from core.data import feed, pipeline
from core.errors import UserError, nearest
from core.evaluators import batches
from core.recipe.types import Refused
from core.state import Batch, Predict, Variables

Outputs = dict[str, np.ndarray]


class Extractor:
  """Rows of a function's outputs, computed on the devices and brought to the host of every process.

  Args:
    fn: `(variables, batch) -> {name: [batch, ...]}`, traced by JAX and compiled once.
    sharding: how a batch lies on the devices.
    where: the path in the config of who asks, for messages: `config.evals.NAME`.
  """

  def __init__(
    self,
    fn: Callable[[Variables, Batch], Mapping[str, Shaped[Array, "batch ..."]]],
    sharding: NamedSharding,
    where: str,
  ):
    self._sharding, self._where = sharding, where
    # A whole copy on every device, so that each process can read all rows, those of the other processes, too.
    self._fn = jax.jit(_with_ids(fn), out_shardings=sharding_lib.replicated(sharding.mesh))

  def shapes(self, variables: Variables, data: pipeline.EvalInput) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the outputs for one batch as shapes, not computed; `variables` may be shapes, too.

    Raises:
      UserError: the data cannot be read or do not fit `fn`, or an output has not one row an example.
    """
    with batches.refused_at(self._where), feed.to_devices(data, self._sharding) as fed:
      made = jax.eval_shape(self._fn, variables, next(fed))
    size = made.pop("_id").shape[0]
    for name, shape in made.items():
      if shape.shape[:1] != (size,):
        raise UserError(
          f"{self._where}: {name} has shape {shape.shape}, which is not one row for each of {size} examples"
        )
    return made

  def pieces(self, variables: Variables, data: pipeline.EvalInput) -> Iterator[tuple[Int[np.ndarray, "rows"], Outputs]]:
    """Yields (indices in the split, outputs of these examples), a batch at a time and without padding.

    Close it when leaving early (`contextlib.closing`).
    """
    with feed.to_devices(data, self._sharding) as fed:
      waiting = None
      for batch in fed:
        # The host takes in one batch's rows while the devices compute the next.
        with batches.refused_at(self._where):
          computing = self._fn(variables, batch)
        if waiting is not None:
          yield _real_rows(waiting)
        waiting = computing
      yield _real_rows(waiting)

  def whole(
    self, variables: Variables, data: pipeline.EvalInput, interrupted: Callable[[], bool] = lambda: False
  ) -> Outputs | None:
    """Returns all outputs, each [examples of the split, ...] in its order; None if `interrupted()` became true."""
    found: Outputs = {}
    pieces = self.pieces(variables, data)
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
def _with_ids(
  fn: Callable[[Variables, Batch], Mapping[str, Shaped[Array, "batch ..."]]],
) -> Callable[[Variables, Batch], dict[str, Shaped[Array, "batch ..."]]]:
  def outputs(variables: Variables, batch: Batch) -> dict[str, Shaped[Array, "batch ..."]]:
    return {**fn(variables, batch), "_id": batch["_id"]}

  return outputs


def _real_rows(made: Mapping[str, Shaped[Array, "batch ..."]]) -> tuple[Int[np.ndarray, "rows"], Outputs]:
  """Returns (indices in the split, outputs) on the host, without padding."""
  outputs = jax.device_get(dict(made))
  ids = outputs.pop("_id")
  real = ids >= 0
  return ids[real], {name: values[real] for name, values in outputs.items()}


def named_outputs(predict: Predict, variables: Variables, batch: Batch) -> dict[str, Shaped[Array, "batch ..."]]:
  """Returns what a prediction gives by name: `output` (`output/NAME` if a dict), and intermediates by their path."""
  output, *rest = predict(variables, batch)
  found = dict(trees.flatten_with_names(rest[-1] if rest else {}))
  named = trees.flatten_with_names({"output": output})
  return {**found, **dict(named)}


@functools.lru_cache(maxsize=64)  # Evaluators that differ in their data alone are one program, compiled once.
def layer_features(
  predict: Predict, layers: tuple[str, ...], *, pool: str | None, keys: tuple[str, ...]
) -> Callable[[Variables, Batch], dict[str, Shaped[Array, "batch ..."]]]:
  """Returns a function for `Extractor`: `{layer: float32 [batch, channels]}` and the entries `keys` of the batch.

  Args:
    predict: `(variables, batch) -> (output, intermediates)`.
    layers: names in `named_outputs`: `pre_logits`, `encoder/block05/+mlp`, `output`.
    pool: see `core.recipe.evaluators_transfer.Transfer`.
    keys: entries of the batch.
  """

  def features(variables: Variables, batch: Batch) -> dict[str, Shaped[Array, "batch ..."]]:
    batches.require(batch, "image", *keys)
    found = named_outputs(predict, variables, batch)
    for layer in layers:
      if layer not in found:
        line = f"names {layer!r}, which the model does not have{near_name(layer, found)}"
        raise Refused(line, key="representation_layer")
    return {layer: _pooled(found[layer], pool, layer) for layer in layers} | {key: batch[key] for key in keys}

  return features


def _pooled(x: Float[Array, "batch *places channels"], pool: str | None, layer: str) -> Float[Array, "batch channels"]:
  """Returns one vector an example.

  Raises:
    Refused: there is none, or `pool` does not say how it is made.
  """
  if x.ndim < 2:
    line = f"names {layer!r}, which has shape {x.shape} and is not one vector an example"
    raise Refused(line, key="representation_layer")
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
  line = f"must be 'mean', 'first' or 'flatten' to make a vector of {layer!r}, of shape {x.shape[1:]} an example"
  raise Refused(line, key="pool")


def near_name(name: str, found: Iterable[str]) -> str:
  """Returns what `core.errors.nearest` does, but lists names that differ only in a block's number once."""
  close = nearest(name, found := sorted(found))
  if close.startswith(" (did"):
    return close
  once = {re.sub(r"\d+", "#", each): each for each in reversed(found)}
  return nearest(name, once.values())
