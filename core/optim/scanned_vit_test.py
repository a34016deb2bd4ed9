"""The same small ViT, with its layers stacked by `scan` and without, trained by optimizers that look at norms."""

import jax
import numpy as np
import optax
import pytest

from core import trees
from core.models import vit, weights
from core.optim import optimizer
from core.recipe.optimizer import Optimizer
from core.recipe.parse import parse


def trained(config, *, scan):
  """Returns the losses of 20 steps of a small ViT from the same parameters."""
  rng = np.random.default_rng(0)
  images, labels = rng.standard_normal((8, 8, 8, 3), np.float32), np.arange(8) % 3
  options = dict(depth=3, width=32, mlp_dim=64, num_heads=2, patch_size=(4, 4))
  plain, model = (vit.Model(3, scan=each, **options) for each in (False, scan))
  wanted = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  params = plain.init(jax.random.key(0), images)["params"]
  named, names = (dict(trees.flatten_with_names(tree)) for tree in (params, wanted))
  params = trees.from_names(weights.match_scan(named, names))
  sizes = dict(total_steps=20, batch_size=8, data_size=40)
  tx, _ = optimizer.make(parse(Optimizer, config), params, sched_kw=sizes)

  def loss(params):
    logits, _ = model.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def step(params, state):
    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value

  state, losses = tx.init(params), []
  for _ in range(20):
    params, state, value = step(params, state)
    losses.append(float(value))
  return losses


@pytest.mark.parametrize(
  "config",
  [
    dict(
      lr=0.03, wd=1e-3, optax_name="scale_by_adafactor", optax=dict(clipping_threshold=1.0, dtype_momentum="float32")
    ),
    dict(lr=0.03, wd=1e-3, optax_name="scale_by_trust_ratio", agc=dict(clipping=0.01)),
  ],
)
def test_a_vit_trains_alike_with_scan_and_without(config):
  plain = trained(config, scan=False)
  assert plain[-1] < 0.7 * plain[0]
  np.testing.assert_allclose(trained(config, scan=True), plain, rtol=1e-4)
