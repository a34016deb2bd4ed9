import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from core.optim import adafactor

# Factored: the second largest axis has 32 or more. "stacked" is a parameter of scanned blocks (depth, in, out).
SHAPES = {
  "square": (32, 48),
  "wide": (4, 64),
  "stacked": (3, 40, 33),
  "heads": (40, 3, 32),
  "bias": (50,),
  "scalar": (),
}
FACTORED = {"square", "stacked", "heads"}


def tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def run(tx, gradients, params):
  state, update, outputs = tx.init(params), jax.jit(tx.update), []
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    outputs.append(jax.tree.map(np.asarray, updates))
  return outputs, state


def adafactor_in_numpy(gradients, *, decay_rate, cap, clipping, momentum, eps=1e-30, smallest=32):
  """The equations on one parameter, in float64, the momentum rounded to bfloat16 between steps."""
  shape = gradients[0].shape
  order = np.argsort(shape)
  factored = len(shape) >= 2 and shape[order[-2]] >= smallest
  v, m, outputs = None, np.zeros(shape), []
  for t, g in enumerate(gradients, start=1):
    g = g.astype(np.float64)
    beta2 = min(cap, 1 - t**-decay_rate)
    squared = g**2 + eps
    if factored:
      small, large = order[-2], order[-1]
      means = squared.mean(large, keepdims=True), squared.mean(small, keepdims=True)
      v = means if v is None else tuple(beta2 * old + (1 - beta2) * new for old, new in zip(v, means))
      second = v[0] * v[1] / v[0].mean(small, keepdims=True)
    else:
      v = squared if v is None else beta2 * v + (1 - beta2) * squared
      second = v
    u = g / np.sqrt(second)
    if clipping:
      u = u / max(1, np.sqrt(np.mean(u**2)) / clipping)
    if momentum:
      u = momentum * m + (1 - momentum) * u
      m = u.astype(ml_dtypes.bfloat16).astype(np.float64)
    outputs.append(u)
  return outputs


@pytest.mark.parametrize(
  "clipping, momentum, cap", [(None, 0.9, 0.999), (1.0, 0.9, 0.5), (0.5, None, 0.999), (None, 0, 0.3)]
)
def test_adafactor_is_its_equations(clipping, momentum, cap):
  gradients = [tree(seed, scale=10.0**-seed) for seed in range(6)]
  tx = adafactor.scale_by_adafactor(clipping_threshold=clipping, momentum=momentum, beta2_cap=cap)
  outputs, _ = run(tx, gradients, tree(99))
  for name in SHAPES:
    want = adafactor_in_numpy(
      [g[name] for g in gradients], decay_rate=0.8, cap=cap, clipping=clipping, momentum=momentum
    )
    # bfloat16 keeps 8 bits; where no momentum is kept, nothing is rounded to it.
    tolerance = dict(rtol=1e-4, atol=1e-5) if not momentum else dict(rtol=2e-2, atol=1e-2)
    for got, expected in zip(outputs, want):
      np.testing.assert_allclose(got[name], expected, **tolerance, err_msg=name)


def test_adafactor_with_a_float32_momentum_is_its_equations_closely():
  gradients = [tree(seed) for seed in range(5)]
  tx = adafactor.scale_by_adafactor(dtype_momentum="float32")
  bare = adafactor.scale_by_adafactor(momentum=None)
  outputs, _ = run(tx, gradients, tree(99))
  unaveraged, _ = run(bare, gradients, tree(99))
  for name in SHAPES:
    m = 0.0
    for got, u in zip(outputs, unaveraged):
      m = 0.9 * m + 0.1 * u[name].astype(np.float64)
      np.testing.assert_allclose(got[name], m, rtol=1e-4, atol=1e-6)


def test_without_cap_and_momentum_it_is_the_factored_rms_of_optax():
  gradients = [tree(seed) for seed in range(4)]
  ours, _ = run(adafactor.scale_by_adafactor(beta2_cap=1.0, momentum=None), gradients, tree(99))
  theirs, _ = run(optax.scale_by_factored_rms(min_dim_size_to_factor=32), gradients, tree(99))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, theirs)


def test_with_clipping_it_takes_the_direction_of_the_whole_adafactor_of_optax():
  gradients, params = [tree(seed) for seed in range(4)], tree(99)
  ours, _ = run(adafactor.scale_by_adafactor(beta2_cap=1.0, momentum=None, clipping_threshold=1.0), gradients, params)
  whole = optax.adafactor(1.0, min_dim_size_to_factor=32, multiply_by_parameter_scale=False, clipping_threshold=1.0)
  theirs, _ = run(whole, gradients, params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-5, atol=1e-7), ours, theirs)


def test_beta2_rises_from_0_and_stops_at_the_cap():
  beta2 = [float(adafactor._capped_decay(step, 0.8, cap=0.999)) for step in (0, 1, 9, 5_000, 10_000_000)]
  np.testing.assert_allclose(beta2, [0, 1 - 2**-0.8, 1 - 10**-0.8, 1 - 5001**-0.8, 0.999], rtol=1e-5)


def test_the_state_is_small_and_mirrors_the_parameters():
  state = jax.eval_shape(adafactor.scale_by_adafactor().init, tree(0))
  second, _, first = state
  assert {name: leaf.shape for name, leaf in first.ema.items()} == SHAPES
  assert all(leaf.dtype == jnp.bfloat16 for leaf in first.ema.values())
  for name, shape in SHAPES.items():
    assert (second.v[name].shape == shape) == (name not in FACTORED)
    assert (second.v_row[name].size > 1) == (second.v_col[name].size > 1) == (name in FACTORED)
  assert (second.v_row["stacked"].shape, second.v_col["stacked"].shape) == ((3, 33), (3, 40))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, "float32"])
def test_momentum_hp_is_the_momentum_of_sgd_stored_in_its_type(nesterov, dtype):
  gradients, params = [tree(seed) for seed in range(5)], tree(99)
  ours, state = run(adafactor.momentum_hp(0.8, dtype, nesterov), gradients, params)
  theirs, _ = run(optax.sgd(1.0, momentum=0.8, nesterov=nesterov), gradients, params)
  tolerance = dict(rtol=1e-6) if dtype == "float32" else dict(rtol=2e-2, atol=3e-2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, **tolerance), ours, theirs)
  assert all(leaf.dtype == jnp.dtype(dtype) for leaf in jax.tree.leaves(state))
