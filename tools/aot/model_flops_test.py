"""FLOPs of models against formulas by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.models import vit
from tools.aot import model_flops

DEPTH, DIM, BATCH = 6, 64, 32
FORWARD = 2 * BATCH * DIM * DIM * DEPTH
ARGUMENTS = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((DEPTH, DIM, DIM), (BATCH, DIM))]


def loss(w, x, *, scan, remat, dead=False):
  layer = lambda x, w: (jnp.tanh(x @ w), x @ w.T @ w if dead else None)
  layer = jax.checkpoint(layer) if remat else layer
  if scan:
    return jnp.sum(jax.lax.scan(layer, x, w)[0])
  for each in range(DEPTH):
    x, _ = layer(x, w[each])
  return jnp.sum(x)


def gradient_flops(remat_off=False, **options):
  fn = functools.partial(loss, **options)
  fn = model_flops.without_remat(fn, *ARGUMENTS) if remat_off else fn
  return model_flops.count(jax.value_and_grad(fn, argnums=(0, 1)), *ARGUMENTS)


@pytest.mark.parametrize("scan", [False, True])
def test_a_gradient_costs_two_more_forward_passes_and_remat_a_third(scan):
  assert gradient_flops(scan=scan, remat=False) == 3 * FORWARD
  assert gradient_flops(scan=scan, remat=True) == 4 * FORWARD
  assert gradient_flops(scan=scan, remat=True, remat_off=True) == 3 * FORWARD


def test_what_nothing_depends_on_is_not_counted():
  assert gradient_flops(scan=True, remat=True, dead=True, remat_off=True) == 3 * FORWARD


def test_without_remat_a_function_has_the_same_values():
  w, x = jax.random.normal(jax.random.key(0), (DEPTH, DIM, DIM)) / 8, jnp.ones((BATCH, DIM))
  fn = functools.partial(loss, scan=True, remat=True)
  plain = model_flops.without_remat(fn, *ARGUMENTS)
  np.testing.assert_allclose(jax.grad(plain)(w, x), jax.grad(fn)(w, x), rtol=1e-5, atol=1e-6)


def test_a_convolution_and_its_gradients_cost_the_same_each():
  kernel, image = (jax.ShapeDtypeStruct(s, "float32") for s in ((4, 4, 3, 8), (2, 16, 16, 3)))
  patches = functools.partial(
    jax.lax.conv_general_dilated, window_strides=(4, 4), padding="VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  flops = 2 * (2 * 4 * 4 * 8) * (4 * 4 * 3)
  loss = lambda kernel, image: jnp.sum(patches(image, kernel) ** 2)
  assert model_flops.count(loss, kernel, image) == flops
  assert model_flops.count(jax.grad(loss, argnums=(0, 1)), kernel, image) == 3 * flops


def test_a_vits_flops_are_those_of_the_formula():
  width, depth, mlp, tokens, batch = 192, 12, 768, 196, 2
  model = vit.Model(10, variant="Ti/16")
  image = jax.ShapeDtypeStruct((batch, 224, 224, 3), "float32")
  params = jax.eval_shape(model.init, jax.random.key(0), image)
  found = model_flops.count(lambda params, image: model.apply(params, image)[0], params, image)
  block = 4 * width**2 + 2 * width * mlp + 2 * tokens * width  # A token's: projections, MLP, scores and their sum.
  assert found == 2 * batch * (tokens * (768 * width + depth * block) + 10 * width)


def test_what_each_device_does_is_counted_for_all_of_them():
  mesh = jax.sharding.AbstractMesh((4,), ("data",))
  split = jax.sharding.PartitionSpec("data")
  square = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=split, out_specs=split)
  with jax.sharding.use_abstract_mesh(mesh):
    assert model_flops.count(square, jax.ShapeDtypeStruct((8, 64), "float32")) == 4 * 2 * 2 * 2 * 64
