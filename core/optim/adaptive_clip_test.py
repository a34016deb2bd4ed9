"""Adaptive gradient clipping by its equation, unit by unit (Brock et al. 2021, eq. 3)."""

import jax.numpy as jnp
import numpy as np

from core import trees
from core.optim import optimizer
from core.recipe.optimizer import Agc


def test_adaptive_clipping_is_its_equation_and_leaves_the_head():
  # The shape of each parameter, and the axes over which one unit's weights lie.
  units = {
    "conv/kernel": ((3, 3, 4, 6), (0, 1, 2)),
    "dense/kernel": ((4, 6), (0,)),
    "query/kernel": ((6, 2, 3), (0,)),
    "query/bias": ((2, 3), (0, 1)),
    "out/kernel": ((2, 3, 6), (0, 1)),
    "pos_embedding": ((1, 9, 6), (0, 1, 2)),
    "gain": ((6,), (0,)),
    "scalar": ((), ()),
    "head/kernel": ((4, 6), ()),
  }
  rng = np.random.default_rng(0)
  weights = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, (shape, _) in units.items()}
  gradients = {name: np.asarray(0.05 * rng.standard_normal(shape), np.float32) for name, (shape, _) in units.items()}
  weights["dense/kernel"][:, 0] = 0  # A unit that starts at zero counts for eps.
  params = trees.from_names(weights)
  clip = optimizer.adaptive_clip(params, Agc(clipping=0.04, eps=0.1))
  updates = clip.update(trees.from_names(gradients), clip.init(params), params)[0]
  updates = dict(trees.flatten_with_names(updates))
  np.testing.assert_array_equal(updates.pop("head/kernel"), gradients["head/kernel"])
  factors = []
  for name, update in updates.items():

    def norm(x, axes=units[name][1]):
      return np.sqrt(np.sum(np.float64(x) ** 2, axis=axes, keepdims=True))

    factor = np.minimum(1, 0.04 * np.maximum(norm(weights[name]), 0.1) / norm(gradients[name]))
    np.testing.assert_allclose(update, factor * gradients[name], rtol=1e-5, err_msg=name)
    factors.extend(factor.ravel())
  assert 0 < np.sum(np.array(factors) < 1) < len(factors)


def test_an_output_of_an_attention_is_one_unit_over_all_heads():
  params = {"out": {"kernel": jnp.ones((12, 4, 5))}}
  clip = optimizer.adaptive_clip(params, Agc(clipping=0.1, exclude=[]))
  updates, _ = clip.update({"out": {"kernel": jnp.full((12, 4, 5), 100.0)}}, clip.init(params), params)
  # The weights of an output have the norm sqrt(48) = 6.93, not that over its heads, sqrt(12).
  norms = np.linalg.norm(np.reshape(updates["out"]["kernel"], (48, 5)), axis=0)
  np.testing.assert_allclose(norms, 0.1 * 6.9282, rtol=1e-4)


def test_stacked_layers_are_clipped_each_by_its_own_norm():
  params = {"encoderblock": {"kernel": jnp.ones((2, 1, 1))}}
  gradients = {"encoderblock": {"kernel": jnp.array([1.0, 100.0]).reshape(2, 1, 1)}}
  clip = optimizer.adaptive_clip(params, Agc(clipping=0.01, exclude=[]))
  updates, _ = clip.update(gradients, clip.init(params), params)
  np.testing.assert_allclose(np.ravel(updates["encoderblock"]["kernel"]), [0.01, 0.01], rtol=1e-6)
