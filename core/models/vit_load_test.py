import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import data_files, trees
from core.checkpoint import pretrained, remote
from core.errors import UserError
from core.models import vit
from core.testing import compilation
from core.testing.params import random_like, shapes

TINY = dict(patch_size=8, width=32, depth=2, mlp_dim=64, num_heads=2)

quick_compilation = compilation.quick()


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


@pytest.mark.parametrize("layout, pool_type", [("first", "tok"), ("scan", "map"), ("naflex", "map")])
@pytest.mark.parametrize("scan", [False, True])
def test_older_layouts_give_the_logits_that_timm_reads_out_of_them(tmp_path, layout, pool_type, scan):
  with np.load(data_files.find("core/models/witness/vit_older.npz")) as file:
    prefix = f"{layout}/file/"
    older = {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}
    image, expected = file["image"], file[f"{layout}/logits"]
  np.savez(tmp_path / "older.npz", **older)
  model = vit.Model(7, pool_type=pool_type, scan=scan, **TINY)
  subtree = ":img" if layout == "naflex" else ""
  params = vit.load(shapes(model), f"{tmp_path}/older.npz{subtree}")
  logits, _ = jax.jit(model.apply)({"params": params}, image)
  np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


PLACES = ["pos_embedding", "Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding"]


def before_linen(named_params):
  """The names that modules had when all children of a module were counted together."""
  counted = {"LayerNorm_0": 0, "MultiHeadDotProductAttention_0": 1, "LayerNorm_1": 2, "MlpBlock_0": 3}
  old = {}
  for name, leaf in named_params.items():
    for new, number in counted.items():
      name = name.replace(f"/{new}/", f"/{new.split('_')[0]}_{number}/")
    old[name] = leaf
  return old


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_names_from_before_linen_and_positions_of_the_class_token_load(saved, place, scan):
  model = vit.Model(7, pool_type="tok", **TINY)
  params = random_like(shapes(model))
  old = before_linen(named(params))
  assert "Transformer/encoderblock_1/MlpBlock_3/Dense_1/kernel" in old
  position = old.pop("pos_embedding")
  old[place] = np.concatenate([np.full((1, 1, 32), 0.5, np.float32), position], axis=1)
  loaded = vit.load(shapes(vit.Model(7, pool_type="tok", scan=scan, **TINY)), saved(old))
  if scan:
    loaded = vit.load(shapes(model), saved(named(loaded)))
  np.testing.assert_allclose(loaded.pop("cls"), params.pop("cls") + 0.5)
  assert_same(loaded, params)


def test_the_position_of_the_class_token_belongs_to_it_even_if_positions_are_not_loaded(saved):
  model = vit.Model(7, pool_type="tok", **TINY)
  params = random_like(shapes(model))
  old = named(params) | {"pos_embedding": np.full((1, 17, 32), 0.5, np.float32)}
  loaded = vit.load(params, saved(old), dont_load=["pos_embedding"])
  np.testing.assert_allclose(loaded["cls"], params["cls"] + 0.5)
  assert_same(loaded["pos_embedding"], params["pos_embedding"])


def test_an_oblong_grid_is_not_taken_for_one_with_a_class_position(saved):
  model = vit.Model(7, pool_type="tok", **TINY)
  oblong = shapes(model, (1, 16, 40, 3))  # 2 x 5 patches: 3 x 3 and one more.
  params = random_like(oblong)
  assert_same(vit.load(oblong, saved(named(params))), params)


@pytest.mark.parametrize("head", ["", "before linen"])
def test_a_map_head_at_the_root_loads(saved, head):
  model = vit.Model(7, pool_type="map", **TINY)
  params = random_like(shapes(model))
  inlined = {name.removeprefix("MAPHead_0/"): leaf for name, leaf in named(params).items()}
  if head:  # Counted after the encoder and the embedding, say.
    counts = {"MultiHeadDotProductAttention_0": 2, "LayerNorm_0": 3, "MlpBlock_0": 4}
    first = {name: f"{name.split('_')[0]}_{count}" for name, count in counts.items()}
    inlined = {
      "/".join([first.get(name.split("/")[0], name.split("/")[0]), *name.split("/")[1:]]): leaf
      for name, leaf in inlined.items()
    }
    assert "MlpBlock_4/Dense_0/kernel" in inlined
  assert_same(vit.load(shapes(model), saved(inlined)), params)


def test_the_image_tower_of_a_two_tower_file_loads_into_a_vit_of_another_task(saved):
  """SigLIP and LiT: `img/`, attention pooling, no head."""
  tower = vit.Model(None, pool_type="map", **TINY)
  params = random_like(shapes(tower))
  others = {"t": np.ones(1), "b": np.ones(1), "txt/head/bias": np.ones(4), "txt/pos_embedding": np.ones((1, 8, 4))}
  path = saved({f"params/img/{name}": leaf for name, leaf in named(params).items()} | others)
  assert_same(vit.load(shapes(tower), f"{path}:img"), params)
  fresh = random_like(shapes(vit.Model(7, pool_type="map", **TINY)), spread=0.1)
  loaded = vit.load(fresh, f"{path}:img", dont_load=["head/.*"])
  assert_same(loaded.pop("head"), fresh["head"])
  assert_same(loaded, params)


def test_a_short_name_is_found_in_the_cache_without_a_network(tmp_path, monkeypatch):
  monkeypatch.setenv("VISION_CACHE", str(tmp_path))
  tower = vit.Model(None, pool_type="map", **TINY)
  params = random_like(shapes(tower))
  place = remote.cached_path("gs://big_vision/siglip/webli_en_b16_224_63724782.npz")
  pretrained.save_params(place, {"params": {"img": params, "t": np.ones(1)}})
  assert_same(vit.load(shapes(tower), "SigLIP B/16 224"), params)
  with pytest.raises(UserError, match=r"^weights 'SigLIP B/16 225': .* \(did you mean .*'SigLIP B/16 224'"):
    vit.load(shapes(tower), "SigLIP B/16 225")


@pytest.mark.parametrize("positions", [(4, 4, 32), (16, 32), (1, 16, 32)])
def test_weights_of_naflex_load_however_their_positions_are_kept(saved, positions):
  model = vit.Model(7, pool_type="map", **TINY)
  params = random_like(shapes(model))
  old = named(params)
  old["embedding/kernel"] = old["embedding/kernel"].reshape(8 * 8 * 3, 32)
  old["pos_embedding"] = old["pos_embedding"].reshape(positions)
  assert_same(vit.load(shapes(model), saved(old)), params)


def test_flexivit_weights_load_at_another_grid_and_patch_size(saved):
  """Kept at 32 px patches and 7 x 7 positions; used at whatever the model has."""
  kept = random_like(shapes(vit.Model(7, **{**TINY, "patch_size": 32}), (1, 224, 224, 3)))
  loaded = vit.load(shapes(vit.Model(7, **TINY), (1, 120, 120, 3)), saved(named(kept)))
  assert loaded["pos_embedding"].shape == (1, 15 * 15, 32)
  corners = np.asarray(loaded["pos_embedding"]).reshape(15, 15, 32)[::14, ::14]
  np.testing.assert_allclose(corners, kept["pos_embedding"].reshape(7, 7, 32)[::6, ::6], atol=1e-6)
  assert loaded["embedding"]["kernel"].shape == (8, 8, 3, 32)
  assert_same(loaded["Transformer"], kept["Transformer"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_all_that_differs_at_once(saved, dtype):
  """A scanned checkpoint in two bytes with class positions, into an unscanned model of larger images and a new head."""
  scanned = vit.Model(21, pool_type="tok", scan=True, **TINY)
  params = random_like(shapes(scanned))
  old = {name: np.asarray(leaf, dtype) for name, leaf in named(params).items()}
  old["pos_embedding"] = np.concatenate([old["cls"], old["pos_embedding"]], axis=1)
  model = vit.Model(7, pool_type="tok", **{**TINY, "patch_size": 16})
  fresh = random_like(shapes(model, (1, 96, 96, 3)), spread=0.1)
  loaded = vit.load(fresh, saved({f"params/{name}": leaf for name, leaf in old.items()}), dont_load=["head/.*"])
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("float32")}
  assert loaded["pos_embedding"].shape == (1, 36, 32)
  np.testing.assert_allclose(loaded["cls"], 2 * params["cls"], rtol=0.01)
  block = loaded["Transformer"]["encoderblock_1"]["LayerNorm_0"]["scale"]
  np.testing.assert_array_equal(block, np.float32(old["Transformer/encoderblock/LayerNorm_0/scale"][1]))
  assert_same(loaded["head"], fresh["head"])


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
  assert ": not the weights of this model: it lacks MAPHead_0/" in line
  assert line.endswith("; its model has pool_type='tok', ours 'map'; its model has num_classes=21, ours 7")
  assert "\n" not in line


@pytest.mark.parametrize(
  "of_file, of_model, words",
  [
    (21, 7, "it has a head of 21 classes, and the model a head of 7 classes (num_classes)"),
    (21_843, None, "it has a head of 21,843 classes, and the model no head (num_classes)"),
    (None, 7, "it has no head, and the model a head of 7 classes (num_classes)"),
  ],
)
def test_a_head_of_another_size_is_told_with_the_remedy(saved, of_file, of_model, words):
  old, new = (random_like(shapes(vit.Model(classes, **TINY))) for classes in (of_file, of_model))
  path = saved(named(old))
  with pytest.raises(UserError) as e:
    vit.load(new, path)
  assert str(e.value) == f"{path}: {words}; model_load.dont_load=['head/.*'] leaves the head out"
  loaded = vit.load(new, path, dont_load=["head/.*"])
  assert_same(loaded.pop("head", None), new.get("head"))
  old.pop("head", None)
  assert_same(loaded, old)


@pytest.mark.parametrize(
  "name, array, words",
  [
    ("pos_embedding", np.ones(()), "pos_embedding () instead of (1, 16, 32)"),
    ("pos_embedding", np.ones((1, 16, 48)), "pos_embedding (1, 16, 48) instead of (1, 16, 32)"),
    ("embedding/kernel", np.ones((100, 32)), "embedding/kernel (100, 32) instead of (8, 8, 3, 32)"),
    ("embedding/kernel", np.ones((8, 8, 1, 32)), "embedding/kernel (8, 8, 1, 32) instead of (8, 8, 3, 32)"),
    ("Transformer/encoderblock_1/LayerNorm_0/bias", np.ones(33), "LayerNorm_0/bias (32,) instead of (2, 32)"),
  ],
)
def test_a_parameter_of_a_strange_shape_is_named(saved, name, array, words):
  old = named(random_like(shapes(vit.Model(7, **TINY)))) | {name: array}
  with pytest.raises(UserError) as e:
    vit.load(shapes(vit.Model(7, scan=True, **TINY)), saved(old))
  assert words in str(e.value)
