import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.models.std_conv import GroupNorm, StdConv, standardize_weights
from core.testing.params import random_like


@pytest.fixture
def image():
  return np.random.default_rng(1).normal(size=(2, 6, 5, 8)).astype(np.float32)


def test_weights_are_standardized_over_all_that_feeds_an_output():
  kernel = np.random.default_rng(0).normal(3, 2, (3, 3, 4, 8)).astype(np.float32)
  standardized = np.asarray(standardize_weights(kernel, 1e-10)).reshape(-1, 8)
  np.testing.assert_allclose(standardized.mean(0), 0, atol=1e-6)
  np.testing.assert_allclose(standardized.std(0), 1, atol=1e-5)
  np.testing.assert_allclose(standardize_weights(kernel * 7 - 1, 1e-10), standardize_weights(kernel, 1e-10), atol=1e-5)
  # A kernel of zeros stays one, and so does its gradient: no division by nothing.
  value, grad = jax.value_and_grad(lambda kernel: (standardize_weights(kernel, 1e-10) ** 2).sum())(kernel * 0)
  assert value == 0
  assert np.isfinite(grad).all()


def test_weights_divided_by_their_deviation_are_numpys():
  kernel = np.random.default_rng(0).normal(3, 1e-5, (3, 3, 4, 8))
  centred = kernel - kernel.mean((0, 1, 2))
  with jax.enable_x64(True):
    found = standardize_weights(jnp.asarray(kernel), 1e-5, "deviation")
    np.testing.assert_allclose(found, centred / (kernel.std((0, 1, 2)) + 1e-5), rtol=1e-8)
    assert np.abs(found - standardize_weights(jnp.asarray(kernel), 1e-10)).max() > 0.1  # Here both epsilons count.
  of = lambda kernel: (standardize_weights(kernel, 1e-5, "deviation") ** 2).sum()
  value, grad = jax.value_and_grad(of)(np.zeros((3, 3, 4, 8), np.float32))
  assert value == 0
  assert np.isfinite(grad).all()


@pytest.mark.parametrize("strides, padding", [((1, 1), "SAME"), ((2, 2), "SAME"), ((2, 2), ((1, 1), (1, 1)))])
def test_the_convolution_is_that_of_flax_with_standardized_weights(image, strides, padding):
  ours = StdConv(16, (3, 3), strides, padding)
  params = jax.jit(ours.init)(jax.random.key(0), image)["params"]
  assert set(params) == {"kernel"}
  flax = nn.Conv(16, (3, 3), strides, padding, use_bias=False)
  standardized = {"kernel": standardize_weights(params["kernel"], 1e-10)}
  expected = flax.apply({"params": standardized}, image)
  np.testing.assert_allclose(ours.apply({"params": params}, image), expected, atol=1e-4)


@pytest.mark.parametrize("num_groups", [1, 2, 8])
def test_group_normalization_is_that_of_flax(image, num_groups):
  image = image + 5 * np.arange(8, dtype=np.float32)
  flax = nn.GroupNorm(num_groups, use_fast_variance=False)
  params = random_like(jax.eval_shape(flax.init, jax.random.key(0), image)["params"])
  run = lambda module, params: jax.value_and_grad(lambda x: (module.apply({"params": params}, x) ** 3).sum())(image)
  expected = run(flax, params)
  ours = run(GroupNorm(num_groups), params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), ours, expected)
  published = jax.tree.map(lambda leaf: leaf.reshape(1, 1, 1, 8), params)
  ours = run(GroupNorm(num_groups, parameter_axes=3), published)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), ours, expected)


def test_the_variance_survives_a_mean_a_thousand_times_larger(image):
  norm = GroupNorm(2, epsilon=0.0)
  params = norm.init(jax.random.key(0), image)
  np.testing.assert_allclose(norm.apply(params, image + 1000), norm.apply(params, image), atol=2e-3)


def test_bfloat16_images_are_normalized_in_float32(image):
  norm = GroupNorm(2)
  params = norm.init(jax.random.key(0), image)
  half = jnp.asarray(image + 30, jnp.bfloat16)
  normalized = norm.apply(params, half)
  assert normalized.dtype == jnp.bfloat16
  # The only error is that of rounding the result.
  expected = norm.apply(params, half.astype(jnp.float32))
  np.testing.assert_allclose(normalized.astype(np.float32), expected, rtol=2**-8)


def test_bfloat16_convolutions_standardize_in_float32(image):
  conv = StdConv(8, (3, 3), dtype=jnp.bfloat16)
  params = conv.init(jax.random.key(0), image)["params"]
  assert params["kernel"].dtype == jnp.float32
  output = conv.apply({"params": params}, image)
  assert output.dtype == jnp.bfloat16
  # A shift of the weights that bfloat16 could not carry is taken off before the rounding.
  shifted = conv.apply({"params": {"kernel": params["kernel"] + 100}}, image)
  np.testing.assert_allclose(output.astype(np.float32), shifted.astype(np.float32), atol=0.2)
