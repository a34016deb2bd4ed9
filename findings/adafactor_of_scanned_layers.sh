#!/usr/bin/env bash
# Optax's factored second moment takes the layers that Flax's nn.scan stacks for an axis of the matrix.
#
# Versions: flax 0.12.8, optax 0.2.8, jax 0.10.2. Run on 2026-11-30.
#
# nn.scan keeps the parameters of all layers in one array with the layers first, and says to optimizers nothing of it.
# scale_by_factored_rms factors the two largest axes of any array of two dimensions or more. The scale of a LayerNorm, a
# vector that is never factored, is a matrix of (layers, features) when scanned, and is factored from as many layers on
# as `min_dim_size_to_factor`. So the same model with the same gradients is trained otherwise, only because of scan.
#
# Seen: 40 layers whose gradients differ in size, min_dim_size_to_factor=32: unrolled, the first update of each number
# is its gradient's sign, 1 in size; scanned, it is between 0.0004 and 5.7. With 31 layers both are 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q flax==0.12.8 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.LayerNorm()(x), None


def size_of_first_updates(layers):
  """Returns the smallest and largest first update of a number of a LayerNorm's scale, unrolled and scanned."""
  stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=layers)
  params = stack().init(jax.random.key(0), jnp.zeros((1, 64)))["params"]["LayerNorm_0"]["scale"]
  assert params.shape == (layers, 64)
  rng = np.random.default_rng(0)
  gradients = rng.standard_normal((layers, 64)).astype(np.float32) * 10.0 ** -(np.arange(layers) % 3)[:, None]
  factored = optax.scale_by_factored_rms(min_dim_size_to_factor=32)

  def first(params, gradients):
    update, _ = factored.update(gradients, factored.init(params), params)
    sizes = np.abs(np.concatenate([np.ravel(x) for x in jax.tree.leaves(update)]))
    return float(sizes.min()), float(sizes.max())

  return first(list(params), list(gradients)), first(params, gradients)


for layers in (31, 40):
  unrolled, scanned = size_of_first_updates(layers)
  print(layers, "layers: unrolled", unrolled, "scanned", scanned)
  np.testing.assert_allclose(unrolled, 1, rtol=1e-4)
  if layers < 32:
    np.testing.assert_allclose(scanned, 1, rtol=1e-4)
  else:
    assert scanned[0] < 0.01 and scanned[1] > 2, scanned
PYTHON
