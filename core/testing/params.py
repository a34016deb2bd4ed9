"""Parameters for tests of models: their shapes without computing them, and values that hide no mistake."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def shapes(model: Any, image: tuple[int, ...] = (1, 32, 32, 3)) -> Any:
  """Returns the parameters of a model of images, as `jax.ShapeDtypeStruct`s."""
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image))["params"]


def random_like(tree: Any, spread: float = 0.3) -> Any:
  """Returns parameters none of which is at rest: no zeros, no ones."""
  leaves, treedef = jax.tree.flatten(tree)
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(treedef, [rng.normal(0.1, spread, leaf.shape).astype(np.float32) for leaf in leaves])


def with_options(model: Any, **changes: Any) -> Any:
  """Returns a model with some of its options changed, and not checked but for how they fit each other."""
  return model.clone(options=dataclasses.replace(model.options, **changes))
