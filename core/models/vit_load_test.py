import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import vit
from core.testing.params import random_like, shapes

TINY = dict(patch_size=8, width=32, depth=2, mlp_dim=64, num_heads=2)


def named(tree):
  return dict(trees.flatten_with_names(tree))


@pytest.fixture
def saved(tmp_path):
  def save(named_params):
    path = str(tmp_path / "weights.npz")
    pretrained.save_params(path, trees.from_names(named_params))
    return path

  return save


def assert_same(params, expected):
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_a_saved_model_loads_as_it_was(saved, prefix):
  model = vit.Model(7, pool_type="map", rep_size=True, **TINY)
  params = random_like(shapes(model))
  path = saved({prefix + name: leaf for name, leaf in named(params).items()})
  assert_same(vit.load(shapes(model), path), params)


def test_bfloat16_weights_load_as_float32(saved):
  model = vit.Model(7, **TINY)
  params = random_like(shapes(model))
  path = saved(named(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)))
  rounded = jax.tree.map(lambda leaf: np.asarray(jnp.asarray(leaf, jnp.bfloat16), np.float32), params)
  assert_same(vit.load(shapes(model), path), rounded)


def test_blocks_load_across_scan_in_both_directions(saved):
  plain, scanned = (vit.Model(7, scan=scan, **{**TINY, "depth": 11}) for scan in (False, True))
  params = random_like(shapes(plain))
  stacked = vit.load(shapes(scanned), saved(named(params)))
  kernel = stacked["Transformer"]["encoderblock"]["MlpBlock_0"]["Dense_0"]["kernel"]
  np.testing.assert_array_equal(kernel[10], params["Transformer"]["encoderblock_10"]["MlpBlock_0"]["Dense_0"]["kernel"])
  assert_same(vit.load(shapes(plain), saved(named(stacked))), params)


@pytest.mark.parametrize("place", ["Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding"])
def test_names_from_before_linen_and_positions_of_the_class_token_load(saved, place):
  model = vit.Model(7, pool_type="tok", **TINY)
  params = random_like(shapes(model))
  old = {}
  counted = {"LayerNorm_0": 0, "MultiHeadDotProductAttention_0": 1, "LayerNorm_1": 2, "MlpBlock_0": 3}
  for name, leaf in named(params).items():
    for new, number in counted.items():
      name = name.replace(f"/{new}/", f"/{new.split('_')[0]}_{number}/")
    old[name] = leaf
  assert "Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel" in old
  position = old.pop("pos_embedding")
  old[place] = np.concatenate([np.full((1, 1, 32), 0.5, np.float32), position], axis=1)
  loaded = vit.load(shapes(model), saved(old))
  np.testing.assert_allclose(loaded.pop("cls"), params.pop("cls") + 0.5)
  assert_same(loaded, params)


def test_a_map_head_at_the_root_loads(saved):
  model = vit.Model(7, pool_type="map", **TINY)
  params = random_like(shapes(model))
  path = saved({name.removeprefix("MAPHead_0/"): leaf for name, leaf in named(params).items()})
  assert_same(vit.load(shapes(model), path), params)


def test_positions_and_patches_of_another_size_are_resized(saved):
  small, large = (vit.Model(7, **{**TINY, "patch_size": patch}) for patch in (8, 16))
  params = random_like(shapes(small))
  params["pos_embedding"][:] = np.arange(4).repeat(4)[None, :, None]  # Each row of the grid holds its index.
  loaded = vit.load(shapes(large, (1, 112, 112, 3)), saved(named(params)))
  rows = np.asarray(loaded["pos_embedding"]).reshape(7, 7, 32)
  np.testing.assert_allclose(rows, np.broadcast_to(np.linspace(0, 3, 7)[:, None, None], (7, 7, 32)), atol=1e-6)
  assert loaded["embedding"]["kernel"].shape == (16, 16, 3, 32)
  np.testing.assert_allclose(
    loaded["embedding"]["kernel"].sum((0, 1)), params["embedding"]["kernel"].sum((0, 1)), atol=1e-4
  )


def test_what_dont_load_names_keeps_its_fresh_value(saved):
  old, new = vit.Model(21, **TINY), vit.Model(7, **TINY)
  params, fresh = random_like(shapes(old)), random_like(shapes(new), spread=0.1)
  loaded = vit.load(fresh, saved(named(params)), dont_load=["head/.*", "pos_embedding"])
  for name, leaf in named(loaded).items():
    source = fresh if name.startswith("head/") or name == "pos_embedding" else params
    np.testing.assert_array_equal(leaf, named(source)[name])


def test_weights_of_another_model_are_refused_by_the_first_names_that_differ(saved):
  params = random_like(shapes(vit.Model(21, pool_type="tok", **TINY)))
  path = saved(named(params))
  with pytest.raises(UserError) as e:
    vit.load(shapes(vit.Model(7, pool_type="map", **TINY)), path)
  line = str(e.value)
  assert line.startswith(f"{path}: not the weights of this model: it lacks MAPHead_0/")
  assert "and 12 more; it has besides cls; of another shape head/bias (21,) instead of (7,), head/kernel" in line
  assert "\n" not in line
  with pytest.raises(UserError, match=r"pos_embedding: 16 positions cannot be resized to 32: .* of the model is none"):
    vit.load(shapes(vit.Model(21, pool_type="tok", **TINY), (1, 32, 64, 3)), path)
