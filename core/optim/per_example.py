"""Clipping of each example's own gradient, before the mean over the batch is taken.

With g_i the gradient of example i and c the largest norm, a step descends by mean_i g_i min(1, c / |g_i|), so that no
example moves the parameters by more than c (Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1;
no noise is added here).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from core import trees
from core.errors import UserError
from core.optim import masks
from core.recipe.optimizer import Optimizer


@dataclasses.dataclass(frozen=True)
class PerExample:
  """The mean of clipped gradients.

  Attributes:
    norm: the largest norm of an example's gradient.
    trainable: a tree like the parameters; whether each counts in the norm.
  """

  norm: float
  trainable: trees.PyTree

  def mean(
    self, value_and_grad: Callable[..., Any], params: trees.PyTree, batch: trees.PyTree, rng: Key[Array, ""]
  ) -> Any:
    """Returns what `value_and_grad(params, batch, rng)` would, the gradient of each example being clipped.

    Args:
      value_and_grad: of a loss, with metrics, that is a mean over the examples of a batch.
      params: the parameters.
      batch: arrays with the examples in their first dimension.
      rng: of which each example gets a key of its own.
    """

    def of_example(example: trees.PyTree, key: Key[Array, ""]) -> Any:
      return value_and_grad(params, jax.tree.map(lambda x: x[None], example), key)

    size = len(jax.tree.leaves(batch)[0])
    found, grads = jax.vmap(of_example)(batch, jax.random.split(rng, size))
    leaves, tree = jax.tree.flatten(grads)
    trains = jax.tree.leaves(self.trainable)
    sums, _ = optax.per_example_global_norm_clip([x for x, counts in zip(leaves, trains) if counts], self.norm)
    clipped = iter(sums)
    means = [next(clipped) / size if counts else jnp.mean(x, axis=0) for x, counts in zip(leaves, trains)]
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), found), jax.tree.unflatten(tree, means)


def from_recipe(
  recipe: Optimizer, params: trees.PyTree, collections: trees.PyTree, frozen: Sequence[str] = ()
) -> PerExample | None:
  """Returns what `recipe.grad_clip_per_example` asks for; None without it.

  Args:
    recipe: of the run.
    params: the parameters or their shapes; only names are used.
    collections: the other variables, or their shapes.
    frozen: regexes of parameters that never train.

  Raises:
    UserError: there are other variables, which would be updated by examples one by one.
  """
  if not recipe.grad_clip_per_example:
    return None
  if names := [name for name, _ in trees.flatten_with_names(collections)]:
    line = f"does not go with {names[0]}, which a whole batch updates, not an example by itself"
    raise UserError(f"config.grad_clip_per_example {line}")
  return PerExample(recipe.grad_clip_norm, masks.trainable_by(recipe, params, frozen))
