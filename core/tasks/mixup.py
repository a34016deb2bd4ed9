"""Mixup (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"): train on convex combinations of examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def mixup(rng: Key[Array, ""], p: float, *arrays: Float[Array, "batch ..."]) -> tuple[Float[Array, "batch ..."], ...]:
  """Mixes each example with its neighbour in the batch, by one weight for the batch.

  The weight is drawn from Beta(p, p). The larger of it and its complement goes to the example itself. All `arrays`
  (images, labels) are mixed alike.

  Args:
    rng: the step's key; the same key gives the same mixture.
    p: parameter of the Beta distribution, from 0 on; 0 mixes nothing.
    *arrays: float arrays with the batch as their first dimension.
  """
  if p == 0:
    return arrays
  weight = jax.random.beta(rng, p, p)
  weight = jnp.maximum(weight, 1 - weight)
  return tuple(weight * x + (1 - weight) * jnp.roll(x, 1, axis=0) for x in arrays)
