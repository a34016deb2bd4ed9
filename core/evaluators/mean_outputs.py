"""The mean over a dataset of whatever a prediction gives for each example: losses, errors, scores."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array

from core import trees
from core.errors import UserError
from core.evaluators import batches
from core.state import Batch, Params, Predict, TrainState


class Evaluator:
  """One metric for each value that the prediction gives, under its name; each example counts exactly once.

  Args:
    predict: `(params, batch) -> {name: [batch]}`, numbers or truth values, or a tuple that begins with such a dict. A
      dict in the dict gives names like `outer/inner`.
    sharding: how a batch lies on the devices.
    data: the dataset, `{"name": ..., "split": ...}`.
    pp_fn: preprocessing that leaves what the prediction reads.
    batch_size: examples a step over all devices; the last batch is padded.
    cache: see `core.evaluators.batches.open_batches`.
  """

  def __init__(
    self,
    predict: Predict,
    *,
    sharding: NamedSharding,
    data: Mapping[str, Any],
    pp_fn: str,
    batch_size: int,
    cache: bool | str | None = None,
  ):
    data = batches.open_batches(data, pp_fn, batch_size=batch_size, sharding=sharding, cache=cache)
    self.data = data
    self._totals = batches.Totals(lambda params, batch: _sums(predict, params, batch), data, sharding)
    self._num_examples = data.num_examples

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `state` may be shapes, too.

    Raises:
      UserError: the data cannot be read or do not fit the model, or the prediction is no dict of values an example.
    """
    self._totals.check(state.params)

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """The metrics of `state.params`; None if `interrupted()` became true on the way."""
    totals = self._totals.run(state.params, interrupted)
    if totals is None:
      return None
    return {name: float(total / self._num_examples) for name, total in totals.items()}


def _sums(predict: Predict, params: Params, batch: Batch) -> dict[str, Array]:
  """Each value's sum over the examples of a batch."""
  values = predict(params, batch)
  values = values[0] if isinstance(values, tuple) else values
  if not isinstance(values, Mapping) or not values:
    found = "a dict without any" if isinstance(values, Mapping) else type(values).__name__
    raise UserError(f"evals: mean needs a prediction that gives a dict of values an example, not {found}")
  real = batch["_mask"] > 0
  sums = {}
  for name, value in trees.flatten_with_names(values):
    if value.shape != real.shape:
      raise UserError(f"evals: {name} has shape {value.shape}, which is not one value for each of {len(real)} examples")
    # Selected rather than multiplied: a padded example may give NaN.
    sums[name] = jnp.sum(jnp.where(real, value.astype(jnp.float32), 0.0))
  return sums
