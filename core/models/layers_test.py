import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.models import layers
from core.recipe.models.options import RematPolicy
from core.testing import compilation

quick_compilation = compilation.quick()


@pytest.fixture(scope="module")
def tokens():
  return jax.random.normal(jax.random.key(1), (2, 6, 32))


@pytest.mark.parametrize("queries", [6, 1])
def test_attention_has_the_parameters_and_numbers_of_flax(tokens, queries):
  query = tokens[:, :queries]
  ours = layers.MultiHeadDotProductAttention(num_heads=4)
  flax = nn.MultiHeadDotProductAttention(num_heads=4, kernel_init=nn.initializers.xavier_uniform(), deterministic=True)
  params, flax_params = (jax.jit(module.init)(jax.random.key(0), query, tokens)["params"] for module in (ours, flax))
  jax.tree.map(np.testing.assert_array_equal, params, flax_params)
  # Other values than those of the start, at which all biases are 0.
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32), params)
  output, flax_output = (jax.jit(module.apply)({"params": params}, query, tokens) for module in (ours, flax))
  np.testing.assert_allclose(output, flax_output, rtol=1e-5, atol=1e-5)


def test_bfloat16_attention_keeps_a_float32_softmax(tokens):
  attention = layers.MultiHeadDotProductAttention(num_heads=4, dtype=jnp.bfloat16)
  params = jax.jit(attention.init)(jax.random.key(0), tokens, tokens)["params"]
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  out = jax.jit(attention.apply)({"params": params}, tokens, tokens)
  assert out.dtype == jnp.bfloat16
  exact = jax.jit(layers.MultiHeadDotProductAttention(num_heads=4).apply)({"params": params}, tokens, tokens)
  np.testing.assert_allclose(out.astype(np.float32), exact, atol=0.03)
  jaxpr = str(jax.make_jaxpr(lambda x: attention.apply({"params": params}, x, x))(tokens))
  exponentials = [line for line in jaxpr.splitlines() if " exp " in line]
  assert exponentials
  assert all("f32" in line for line in exponentials)


@pytest.mark.parametrize(
  "backend, capability, dtype, tokens, dim, implementation",
  [
    ("gpu", "9.0", jnp.bfloat16, 196, 64, "cudnn"),
    ("gpu", "8.0", jnp.bfloat16, 196, 72, "cudnn"),
    ("gpu", "12.0", jnp.bfloat16, 197, 64, "cudnn"),
    ("gpu", "7.5", jnp.bfloat16, 196, 64, "xla"),
    ("gpu", "gfx90a", jnp.bfloat16, 196, 64, "xla"),
    ("gpu", "9.0", jnp.float32, 196, 64, "xla"),
    ("gpu", "9.0", jnp.bfloat16, 1, 64, "xla"),
    ("gpu", "9.0", jnp.bfloat16, 196, 12, "xla"),
    ("gpu", "9.0", jnp.bfloat16, 196, 136, "xla"),
    ("cpu", None, jnp.bfloat16, 196, 64, "xla"),
    ("tpu", None, jnp.bfloat16, 196, 64, "xla"),
  ],
)
def test_flash_attention_is_chosen_where_cudnn_can_run_it(
  monkeypatch, backend, capability, dtype, tokens, dim, implementation
):
  device = type("Device", (), {"compute_capability": capability})
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  query = jax.ShapeDtypeStruct((8, tokens, 12, dim), dtype)
  assert layers.attention_implementation(query) == implementation


def test_the_mlp_uses_the_tanh_gelu_and_drops_its_hidden_units(tokens):
  block = layers.MlpBlock(dropout=0.5)
  params = jax.jit(block.init)(jax.random.key(0), tokens)["params"]
  assert params["Dense_0"]["kernel"].shape == (32, 128)
  hidden = np.asarray(tokens @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
  gelu = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
  expected = gelu @ np.asarray(params["Dense_1"]["kernel"]) + np.asarray(params["Dense_1"]["bias"])
  np.testing.assert_allclose(block.apply({"params": params}, tokens), expected, rtol=1e-4, atol=1e-5)
  drop = jax.jit(lambda seed: block.apply({"params": params}, tokens, False, rngs={"dropout": jax.random.key(seed)}))
  one, two = drop(0), drop(1)
  assert not np.allclose(one, two)
  assert not (np.asarray(one) == 0).any()  # Dropout stands before the second Dense, not after it.


def test_mlp_biases_start_near_but_not_at_zero(tokens):
  params = jax.jit(layers.MlpBlock(mlp_dim=2000).init)(jax.random.key(0), tokens)["params"]
  np.testing.assert_allclose(np.std(params["Dense_0"]["bias"]), 1e-6, rtol=0.1)
  bound = np.sqrt(6 / (32 + 2000))
  kernel = np.asarray(params["Dense_0"]["kernel"])
  assert 0.99 * bound < np.abs(kernel).max() <= bound
  np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)


def test_sincos2d_is_the_formula_of_moco_v3():
  dim, rows, columns = 16, 2, 3
  omega = [10_000 ** (-k / (dim / 4 - 1)) for k in range(dim // 4)]
  expected = [
    [np.sin(x * w) for w in omega]
    + [np.cos(x * w) for w in omega]
    + [np.sin(y * w) for w in omega]
    + [np.cos(y * w) for w in omega]
    for y in range(rows)
    for x in range(columns)
  ]
  np.testing.assert_allclose(layers.sincos2d(rows, columns, dim), [expected], rtol=1e-5, atol=1e-6)


def _loss(encoder):
  def loss(params, x):
    x, out = encoder.apply({"params": params}, x)
    return (x**2 * jnp.arange(x.shape[1])[:, None]).sum(), out

  return loss


def _stack(tree, name):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tree[f"{name}{i}"] for i in range(2)))


@pytest.fixture(scope="module")
def plain(tokens):
  encoder = layers.Encoder(depth=2, num_heads=2, mlp_dim=48)
  params = jax.jit(encoder.init)(jax.random.key(0), tokens)["params"]
  return params, jax.jit(jax.value_and_grad(_loss(encoder), has_aux=True))(params, tokens)


@pytest.mark.parametrize("scan, remat_policy", [(True, None), (True, "none"), (False, "dots_saveable")])
def test_scan_and_remat_give_the_numbers_intermediates_and_gradients_of_plain_blocks(tokens, plain, scan, remat_policy):
  params, expected = plain
  if scan:
    stacked = lambda tree: {"encoderblock": _stack(tree, "encoderblock_"), "encoder_norm": tree["encoder_norm"]}
    params, expected = stacked(params), (expected[0], stacked(expected[1]))
  encoder = layers.Encoder(depth=2, num_heads=2, mlp_dim=48, scan=scan, remat_policy=remat_policy)
  ours = jax.jit(jax.value_and_grad(_loss(encoder), has_aux=True))(params, tokens)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4), ours, expected)


# A block has 8 matrix products and twice as many in its backward pass. Recomputing them costs 7 (no gradient needs the
# result of the last), and 2 of these, of the attention itself, have batch dimensions. Its scores are computed once more
# unless a policy keeps all products.
RECOMPUTED_PRODUCTS = {
  "none": 1,
  "nothing_saveable": 8,
  "everything_saveable": 0,
  "dots_saveable": 0,
  "checkpoint_dots": 0,
  "dots_with_no_batch_dims_saveable": 3,
  "checkpoint_dots_with_no_batch_dims": 3,
}


@pytest.mark.parametrize("remat_policy", [None, *typing.get_args(RematPolicy)])
@pytest.mark.parametrize("scan", [False, True])
def test_the_backward_pass_recomputes_what_the_policy_says(tokens, scan, remat_policy):
  encoder = layers.Encoder(depth=2, num_heads=2, mlp_dim=48, scan=scan, remat_policy=remat_policy)
  params = jax.eval_shape(encoder.init, jax.random.key(0), tokens)["params"]
  loss = lambda params: encoder.apply({"params": params}, tokens)[0].sum()
  products = str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general[")
  policy = remat_policy or ("nothing_saveable" if scan else "none")
  assert products == (24 + RECOMPUTED_PRODUCTS[policy]) * (1 if scan else 2)


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_skips_more_of_later_blocks_and_keeps_the_mean(scan):
  tokens = jax.random.normal(jax.random.key(1), (1_000, 1, 8))
  encoder = layers.Encoder(3, num_heads=2, mlp_dim=16, stoch_depth=0.4, scan=scan)
  params = jax.jit(encoder.init)(jax.random.key(0), tokens[:1])["params"]
  _, out = jax.jit(lambda x: encoder.apply({"params": params}, x, False, rngs={"dropout": jax.random.key(2)}))(tokens)
  inputs = tokens
  for name, rate in (("block00", 0.0), ("block01", 0.2), ("block02", 0.4)):
    block = out[name]
    for before, branch, after in ((inputs, "sa", "+sa"), (block["+sa"], "mlp", "+mlp")):
      step = np.asarray(block[after] - before)
      kept = np.any(step != 0, axis=(1, 2))
      np.testing.assert_allclose(kept.mean(), 1 - rate, atol=0.06)
      np.testing.assert_allclose(step[kept], np.asarray(block[branch])[kept] / (1 - rate), rtol=1e-3, atol=1e-5)
    inputs = block["+mlp"]


def test_stochastic_depth_is_off_outside_training(tokens):
  plain, skipping = (layers.Encoder(2, num_heads=2, stoch_depth=rate) for rate in (0.0, 0.5))
  params = jax.jit(plain.init)(jax.random.key(0), tokens)["params"]
  np.testing.assert_array_equal(
    plain.apply({"params": params}, tokens)[0], skipping.apply({"params": params}, tokens)[0]
  )
