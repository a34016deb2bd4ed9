"""However parameters are split, each device holds its own examples alone, through every layer, forward and back."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import sharding
from core.models import registry
from core.recipe.sharding import Fsdp

jax.config.update("jax_num_cpu_devices", 4)

# Large, so that to gather it never pays; and no other dimension of what is computed: a shape with it, on one device,
# has all of the batch.
BATCH = 1_004
IMAGE = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.float32)
TEXT = jax.ShapeDtypeStruct((BATCH, 7), jnp.int32)

MODELS = {
  "vit": (dict(width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=(8, 8), pool_type="map", scan=True), IMAGE),
  "mixer": (
    dict(patch_size=(8, 8), num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32, head_zeroinit=False),
    IMAGE,
  ),
  "bit": (dict(depth=(1, 1), width=0.5, head_zeroinit=False), IMAGE),
  "resnet": (dict(depth=(1, 1), width=0.5, head_zeroinit=False), IMAGE),
  "nfnet": (dict(width=(16, 32), depth=(1, 1), stem_width=16, final_width=32, group_size=8), IMAGE),
  "text_transformer": (dict(width=16, depth=2, mlp_dim=32, num_heads=2, vocab_size=64), TEXT),
  "bert": (dict(width=16, depth=2, mlp_dim=32, num_heads=2, vocab_size=64, max_len=8), TEXT),
}


def compiled_gradient(name: str, held: bool) -> str:
  """The program of one of four devices for the gradient of a model whose parameters are split over all."""
  options, example = MODELS[name]
  model = registry.get(name).Model(12, **options)
  mesh = sharding.make_mesh([("fsdp", 4)])
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(example.shape, example.dtype))["params"])
  where = sharding.params_shardings(params, mesh, [(".*", Fsdp(min_size_to_shard_mb=0))])
  params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, where)
  example = jax.ShapeDtypeStruct(example.shape, example.dtype, sharding=sharding.batch_sharding(mesh))
  loss = lambda params, x: jnp.mean(jnp.square(model.apply({"params": params}, x)[0]))
  with sharding.activations(mesh) if held else contextlib.nullcontext():
    return jax.jit(jax.grad(loss), out_shardings=where).lower(params, example).compile().as_text()


def whole_batches(program: str) -> list[str]:
  return re.findall(rf"\w+\[(?:\d+,)*{BATCH}(?:,\d+)*\]", program)


@pytest.mark.parametrize("name", MODELS)
def test_no_device_holds_an_activation_of_the_whole_batch(name):
  assert whole_batches(compiled_gradient(name, held=True)) == []


def test_left_to_itself_the_compiler_gathers_activations():
  assert whole_batches(compiled_gradient("vit", held=False))


@pytest.mark.parametrize("axes", [[("fsdp", 2), ("sequence", 2)], [("fsdp", 2), ("tensor", 2)]])
def test_tokens_and_heads_may_be_split_as_well_and_gradients_stay_the_same(axes):
  model = registry.get("vit").Model(12, **MODELS["vit"][0] | dict(head_zeroinit=False))
  image = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
  params = model.init(jax.random.key(0), image)["params"]
  gradient = jax.grad(lambda params, x: jnp.mean(jnp.square(model.apply({"params": params}, x)[0])))
  mesh = sharding.make_mesh(axes)
  split = jax.device_put((params, image), (sharding.params_shardings(params, mesh), sharding.batch_sharding(mesh)))
  with sharding.activations(mesh):
    program = jax.jit(gradient).lower(*split).compile()
  # Half of the 16 tokens, or of the 2 heads, of half of the 4 images.
  assert "f32[2,8,16]" in program.as_text() if axes[1][0] == "sequence" else "f32[2,16,1,8]" in program.as_text()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    program(*split),
    jax.jit(gradient)(params, image),
  )
