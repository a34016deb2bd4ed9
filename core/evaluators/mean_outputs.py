"""The mean over a dataset of whatever a prediction gives for each example: losses, errors, scores."""

import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array

from core import trees
from core.evaluators import batches
from core.recipe.evaluators import Mean
from core.recipe.types import Refused
from core.state import Batch, Predict, Variables


class Evaluator:
  """One metric for each value that the prediction gives, under its name; each example counts exactly once.

  Args:
    options: see there.
    predict: `(variables, batch) -> {name: [batch]}`, numbers or truth values, or a tuple that begins with such a dict.
      A dict in the dict gives names like `outer/inner`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.
  """

  def __init__(self, options: Mean, predict: Predict, *, sharding: NamedSharding, where: str):
    self.data = batches.open_dataset(options, sharding, where)
    self._totals = batches.Totals(functools.partial(_sums, predict), self.data, sharding, where)

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `variables` may be shapes, too.

    Raises:
      UserError: the data cannot be read or do not fit the model, or the prediction is no dict of values an example.
    """
    self._totals.check(variables)

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics; None if `interrupted()` became true on the way."""
    totals = self._totals.run(variables, interrupted)
    if totals is None:
      return None
    return {name: float(total / self.data.num_examples) for name, total in totals.items()}


def _sums(predict: Predict, variables: Variables, batch: Batch) -> dict[str, Array]:
  """Returns each value's sum over the examples of a batch."""
  values = predict(variables, batch)
  values = values[0] if isinstance(values, tuple) and values else values
  if not isinstance(values, Mapping) or not values:
    found = "a dict without any" if isinstance(values, Mapping) else "an array" if hasattr(values, "shape") else values
    raise Refused(f"must be a prediction that gives a dict of values an example, not {found}", key="pred")
  real = batch["_mask"] > 0
  sums = {}
  for name, value in trees.flatten_with_names(values):
    if value.shape != real.shape:
      line = f"gives {name} of shape {value.shape}, which is not one value for each of {len(real)} examples"
      raise Refused(line, key="pred")
    # Selected rather than multiplied: a padded example may give NaN.
    sums[name] = jnp.sum(jnp.where(real, value.astype(jnp.float32), 0.0))
  return sums
