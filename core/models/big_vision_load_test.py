"""Models start from checkpoints of big_vision, each array of which JAX's own serialization wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.models import text_transformer, two_towers, vit
from core.testing import big_vision_checkpoint
from core.testing.params import random_like, shapes

SIZES = dict(width=16, depth=3, mlp_dim=24, num_heads=2)
IMAGE = dict(patch_size=8, pool_type="map", **SIZES)
TEXT = dict(vocab_size=50, max_len=8, **SIZES)


def siglip(scan):
  return two_towers.Model(
    image=IMAGE | dict(scan=scan), text=TEXT | dict(scan=scan), out_dim=(None, 16), bias_init=-10.0
  )


def fresh(model):
  inputs = (jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 8), jnp.int32))
  return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def written(tmp_path, params, **how):
  """Returns the folder of a checkpoint with the state of an optimizer beside the parameters."""
  opt = optax.chain(optax.identity(), optax.scale_by_adam(mu_dtype="bfloat16")).init(params)
  return big_vision_checkpoint.write(tmp_path, {"params": params, "opt": opt}, 12_345, **how)


def assert_same(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("scan", [False, True])
def test_a_vit_loads_with_and_without_scan(tmp_path, scan, keep):
  plain, scanned = (vit.Model(7, scan=each, **IMAGE) for each in (False, True))
  saved = random_like(shapes(scanned if scan else plain))
  folder = written(tmp_path, saved, keep=keep)
  for spec in (f"{tmp_path}/checkpoint.bv", str(folder)):
    of_plain, of_scanned = (vit.load(shapes(model), spec, model.options) for model in (plain, scanned))
    assert_same(of_scanned if scan else of_plain, saved)
    kernel = of_scanned["Transformer"]["encoderblock"]["MlpBlock_0"]["Dense_0"]["kernel"]
    for i in range(3):
      np.testing.assert_array_equal(
        of_plain["Transformer"][f"encoderblock_{i}"]["MlpBlock_0"]["Dense_0"]["kernel"], kernel[i]
      )


@pytest.mark.parametrize("scan", [False, True])
def test_two_towers_load_whole_and_each_by_its_subtree(tmp_path, scan):
  saved = random_like(fresh(siglip(scan)))
  written(tmp_path, saved)
  spec = f"{tmp_path}/checkpoint.bv"
  for model in (siglip(False), siglip(True)):
    loaded = two_towers.load(fresh(model), spec, model.options)
    np.testing.assert_array_equal(loaded["t"], saved["t"])
    np.testing.assert_array_equal(loaded["b"], saved["b"])
    if model.options.image.scan == scan:
      assert_same(loaded, saved)
    each = two_towers.load(
      fresh(model), {"image": f"{spec}:img", "text": f"{spec}:txt", "t": f"{spec}:t"}, model.options
    )
    assert_same({key: each[key] for key in ("img", "txt", "t")}, {key: loaded[key] for key in ("img", "txt", "t")})
  tower = vit.Model(None, scan=scan, **IMAGE)
  assert_same(vit.load(shapes(tower), f"{spec}:img", tower.options), saved["img"])
  text = text_transformer.Model(16, scan=scan, **TEXT)
  of_text = jax.eval_shape(text.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
  assert_same(text_transformer.load(of_text, f"{spec}:txt", text.options), saved["txt"])
