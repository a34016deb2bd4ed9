#!/usr/bin/env bash
# optax.adaptive_grad_clip takes the units of Flax's attention kernels for what they are not.
#
# Versions: flax 0.12.8, optax 0.2.8, jax 0.10.2. Run on 2026-11-30.
#
# Adaptive clipping bounds the gradient of each output unit by the norm of that unit's incoming weights (Brock et al.
# 2021, arXiv:2102.06171, eq. 3). Optax finds the units by the number of dimensions alone: of three it takes the first
# for the inputs. Flax's MultiHeadDotProductAttention keeps its output projection as (heads, head_dim, features), whose
# inputs are the first two, and the biases of query, key and value as (heads, head_dim).
#
# Seen: with 12 heads of 64, weights of one, a clipping of 0.1, and steep gradients in one of the 64 numbers of a head,
#   - an output of `out`, whose weights have the norm sqrt(768), keeps a gradient of norm 0.3464, which is 0.1 sqrt(12);
#     the same kernel as a matrix of (768, 768) keeps 2.7713, which is 0.1 sqrt(768);
#   - the bias of a query keeps 0.3464, and as one vector of 768 numbers 2.7713.
# Every one of the 64 numbers of a head is taken for a unit of its own, with as many weights as there are heads.
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

attention = nn.MultiHeadDotProductAttention(num_heads=12)
params = attention.init(jax.random.key(0), jnp.zeros((1, 4, 768)))["params"]
shapes = jax.tree.map(jnp.shape, {"out": params["out"]["kernel"], "bias": params["query"]["bias"]})
print("shapes", shapes)
assert shapes == {"out": (12, 64, 768), "bias": (12, 64)}

clip = optax.adaptive_grad_clip(0.1)


def norm_of_clipped(weights, gradient, axes):
  clipped, _ = clip.update({"x": gradient}, clip.init({"x": weights}), {"x": weights})
  return float(np.max(np.sqrt(np.sum(np.square(clipped["x"]), axis=axes))))


kernel = np.ones((12, 64, 768), np.float32)
steep = np.zeros_like(kernel)
steep[:, 0] = 100  # Each output's gradient lies in one of the 64 numbers of every head.
as_it_is = norm_of_clipped(kernel, steep, (0, 1))
as_a_matrix = norm_of_clipped(kernel.reshape(768, 768), steep.reshape(768, 768), 0)
print("gradient kept by an output of `out`:", as_it_is, "; seen as a matrix:", as_a_matrix)
np.testing.assert_allclose(as_it_is, 0.1 * np.sqrt(12), rtol=1e-4)
np.testing.assert_allclose(as_a_matrix, 0.1 * np.sqrt(768), rtol=1e-4)

bias = np.ones((12, 64), np.float32)
steep = np.zeros_like(bias)
steep[:, 0] = 100
as_it_is, flat = norm_of_clipped(bias, steep, None), norm_of_clipped(bias.ravel(), steep.ravel(), None)
print("gradient kept by a query's bias:", as_it_is, "; as one vector:", flat)
np.testing.assert_allclose(as_it_is, 0.1 * np.sqrt(12), rtol=1e-4)
np.testing.assert_allclose(flat, 0.1 * np.sqrt(768), rtol=1e-4)
PYTHON
