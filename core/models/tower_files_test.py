"""Files of the published names and shapes, made here from random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import trees
from core.checkpoint import pretrained, remote
from core.errors import UserError
from core.models import one_tower, two_towers, vit
from core.recipe.models.load import Load
from core.recipe.parse import parse
from core.testing.params import random_like

SIZES = dict(width=32, depth=2, mlp_dim=64, num_heads=2)
SIGLIP = dict(
  image=dict(patch_size=8, pool_type="map", **SIZES),
  text=dict(vocab_size=100, **SIZES),
  out_dim=(None, 32),
  bias_init=-10.0,
)
LIT = dict(
  image=dict(patch_size=8, pool_type="tok", **SIZES),
  text_model="proj.flaxformer.bert",
  text=dict(config="base", head_zeroinit=False, max_len=16, vocab_size=100, **SIZES),
  out_dim=(None, 32),
)
CLIPPO = dict(image=dict(patch_size=8, pool_type="map", **SIZES), out_dim=24)


def named(tree):
  return dict(trees.flatten_with_names(tree))


def given(cfg):
  """The options as a config states them."""
  return parse((two_towers if "text" in cfg else one_tower).Options, cfg, "config.model")


def fresh(cfg, size=32, length=8):
  """The parameters before loading."""
  family = two_towers if "text" in cfg else one_tower
  text = jnp.zeros((1, length), jnp.int32) if "text" in cfg else jnp.zeros((1, size, size, 3))
  init = jax.eval_shape(family.Model(**cfg).init, jax.random.key(0), jnp.zeros((1, size, size, 3)), text)
  return random_like(init["params"], spread=0.1)


def of_file(cfg, **kw):
  """Other numbers than the fresh ones."""
  return jax.tree.map(lambda leaf: leaf + np.float32(1), fresh(cfg, **kw))


@pytest.fixture
def saved(tmp_path):
  def save(tree, name="weights.npz", prefix=""):
    pretrained.save_params(tmp_path / name, {f"{prefix}{key}": leaf for key, leaf in named(tree).items()})
    return str(tmp_path / name)

  return save


def assert_same(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def with_options(cfg, **kw):
  return cfg | {kind: cfg[kind] | kw for kind in ("image", "text")}


# One file of all.


@pytest.mark.parametrize("cfg", [SIGLIP, LIT, CLIPPO], ids=["siglip", "lit", "clippo"])
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_a_whole_file_loads_as_it_was(saved, cfg, prefix):
  params = of_file(cfg)
  family = two_towers if "text" in cfg else one_tower
  assert_same(family.load(fresh(cfg), saved(params, prefix=prefix), given(cfg)), params)


@pytest.mark.parametrize(
  "family, cfg, name, url",
  [
    (two_towers, SIGLIP, "SigLIP B/16 224", "gs://big_vision/siglip/webli_en_b16_224_63724782.npz"),
    (two_towers, SIGLIP, "SigLIP2 So400m/14 384", "gs://big_vision/siglip2/siglip2_so400m14_384.npz"),
    (two_towers, LIT, "mixed_B16B", "gs://vit_models/lit/LiT-B16B.npz"),
    (one_tower, CLIPPO, "yfcc100m_i21k_init", "gs://big_vision/clippo/clippo_b16_yfcc100m_i21k_init.npz"),
  ],
)
def test_short_names_are_found_in_the_cache_without_a_network(tmp_path, monkeypatch, family, cfg, name, url):
  monkeypatch.setenv("VISION_CACHE", str(tmp_path))
  params = of_file(cfg)
  pretrained.save_params(remote.cached_path(url), {"params": params})
  assert_same(family.load(fresh(cfg), name, given(cfg)), params)
  if family is two_towers:  # Each tower by the name of the file it stands in.
    parts = {part: f"{name}:{part}" for part in params}
    assert_same(family.load(fresh(cfg), parts, given(cfg)), params)
  with pytest.raises(UserError, match=rf"^weights '{name[:-1]}_': .* \(did you mean .*'{name}'"):
    family.load(fresh(cfg), f"{name[:-1]}_", given(cfg))


def test_towers_load_at_another_resolution_and_patch_size(saved):
  """The grid is resized, the patch embedding by FlexiViT's pseudo-inverse, and texts stay."""
  params = of_file(SIGLIP, size=32)
  path = saved(params)
  larger = two_towers.load(fresh(SIGLIP, size=64), path, given(SIGLIP))
  corners = larger["img"]["pos_embedding"].reshape(8, 8, 32)[::7, ::7]
  np.testing.assert_allclose(corners, params["img"]["pos_embedding"].reshape(4, 4, 32)[::3, ::3], rtol=1e-6)
  assert_same(larger["txt"], params["txt"])
  assert_same(larger["img"]["MAPHead_0"], params["img"]["MAPHead_0"])
  coarser = SIGLIP | dict(image=SIGLIP["image"] | dict(patch_size=16))
  loaded = two_towers.load(fresh(coarser, size=64), path, given(coarser))
  assert loaded["img"]["embedding"]["kernel"].shape == (16, 16, 3, 32)
  np.testing.assert_array_equal(loaded["img"]["pos_embedding"], params["img"]["pos_embedding"])


def test_blocks_of_both_towers_load_across_scan_in_both_directions(saved):
  scanned = with_options(SIGLIP, scan=True)
  params = of_file(SIGLIP)
  stacked = two_towers.load(fresh(scanned), saved(params), given(scanned))
  for tower, encoder in (("img", "Transformer"), ("txt", "Encoder_0")):
    kernel = stacked[tower][encoder]["encoderblock"]["MlpBlock_0"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(
      kernel[1], params[tower][encoder]["encoderblock_1"]["MlpBlock_0"]["Dense_0"]["kernel"]
    )
  assert_same(two_towers.load(fresh(SIGLIP), saved(stacked, "stacked.npz"), given(SIGLIP)), params)


def test_bfloat16_files_load_as_float32(saved):
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), of_file(SIGLIP))
  loaded = two_towers.load(fresh(SIGLIP), saved(params), given(SIGLIP))
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype("float32")}
  assert_same(loaded, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params))


# A file for each.


def test_towers_load_each_from_its_own_file_and_what_has_none_stays(saved):
  params, init = of_file(SIGLIP), fresh(SIGLIP)
  image, text = saved(params["img"], "image.npz"), f"{saved(params, 'both.npz')}:txt"
  assert_same(two_towers.load(init, dict(image=image), given(SIGLIP)), init | {"img": params["img"]})
  assert_same(two_towers.load(init, dict(img=None, txt=text), given(SIGLIP)), init | {"txt": params["txt"]})
  both = dict(image=image, text=text, temperature=saved(params, "both.npz"), b=f"{saved(params, 'both.npz')}:b")
  assert_same(two_towers.load(init, both, given(SIGLIP)), params)


def test_a_classifier_becomes_an_image_tower_without_its_head(saved):
  classifier = vit.Model(21, patch_size=8, pool_type="map", **SIZES)
  weights = random_like(jax.eval_shape(classifier.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"])
  path = saved(weights)
  with_head, init = SIGLIP | dict(out_dim=32), fresh(SIGLIP | dict(out_dim=32))
  with pytest.raises(UserError) as e:
    two_towers.load(init, dict(image=path), given(with_head))
  assert str(e.value) == (
    f"config.model_init.image: {path}: it has a head of 21 classes, and the model a head of 32 classes (num_classes); "
    "model_load.img_load_kw.dont_load=['head/.*'] leaves the head out"
  )
  loaded = two_towers.load(init, dict(image=path), given(with_head), img_load_kw=Load(dont_load=("head/.*",)))
  assert_same(loaded["img"].pop("head"), init["img"].pop("head"))
  del weights["head"]
  assert_same(loaded["img"], weights)
  bare = two_towers.load(fresh(SIGLIP), dict(image=path), given(SIGLIP), img_load_kw=Load(dont_load=("head/.*",)))
  assert_same(bare["img"], weights)
  one = one_tower.load(fresh(CLIPPO), dict(image=path), given(CLIPPO), img_load_kw=Load(dont_load=("head/.*",)))
  assert_same(one["img"]["MAPHead_0"], weights["MAPHead_0"])


# What is not to be loaded.


@pytest.mark.parametrize(
  "patterns, kept",
  [
    (["txt/head/.*"], ["txt/head/kernel", "txt/head/bias"]),
    (["t", "b"], ["t", "b"]),
    (["(img|txt)/.*encoder_norm/bias"], ["img/Transformer/encoder_norm/bias", "txt/Encoder_0/encoder_norm/bias"]),
    ([".*/pos_embedding"], ["img/pos_embedding", "txt/pos_embedding"]),
  ],
)
def test_what_dont_load_names_keeps_its_fresh_value(saved, patterns, kept):
  params, init = of_file(SIGLIP), fresh(SIGLIP)
  loaded = named(two_towers.load(init, saved(params), given(SIGLIP), dont_load=patterns))
  for name, leaf in loaded.items():
    np.testing.assert_array_equal(leaf, named(init if name in kept else params)[name])


def test_a_parameter_that_the_model_lacks_can_be_left_out(saved):
  params = of_file(SIGLIP)
  more = params | {"img": params["img"] | {"cls": np.ones((1, 1, 32), np.float32)}}
  path = saved(more)
  with pytest.raises(UserError, match=r"^img: .*: not the weights of this model: it has besides cls"):
    two_towers.load(fresh(SIGLIP), path, given(SIGLIP))
  assert_same(two_towers.load(fresh(SIGLIP), path, given(SIGLIP), dont_load=["img/cls"]), params)


@pytest.mark.parametrize(
  "patterns, options, line",
  [
    (["txt/haed/.*"], {}, "config.model_load.dont_load: 'txt/haed/.*' matches no parameter (nearest: txt/head/"),
    (["(img|txt)/haed/.*"], {}, "config.model_load.dont_load: '(img|txt)/haed/.*' matches no parameter"),
    (["b", "bias"], {}, "config.model_load.dont_load: 'bias' matches no parameter (nearest: txt/head/bias, b, "),
    ((), dict(img_load_kw=Load(dont_load=("haed",))), "config.model_load.img_load_kw.dont_load: 'haed' matches no"),
    (["["], {}, "config.model_load.dont_load[0] must be a regular expression, got '[': unterminated character set"),
  ],
)
def test_a_regex_that_matches_nothing_is_refused(saved, patterns, options, line):
  path = saved(of_file(SIGLIP))
  for init_file in (path, dict(image=f"{path}:img", text=f"{path}:txt")):
    with pytest.raises(UserError) as e:
      two_towers.load(fresh(SIGLIP), init_file, given(SIGLIP), patterns, **options)
    assert str(e.value).startswith(line)
    assert len(str(e.value)) <= 300


# What cannot be.


def test_files_with_and_without_a_bias_are_told_apart(saved):
  softmax = SIGLIP | dict(bias_init=None)
  path = saved(of_file(softmax))
  with pytest.raises(
    UserError, match=r"it has no bias b, .*; set model.bias_init=None, or model_load.dont_load=\['b'\]"
  ):
    two_towers.load(fresh(SIGLIP), path, given(SIGLIP))
  loaded = two_towers.load(fresh(SIGLIP), path, given(SIGLIP), dont_load=["b"])
  np.testing.assert_array_equal(loaded["b"], fresh(SIGLIP)["b"])
  path = saved(of_file(SIGLIP))
  with pytest.raises(
    UserError, match=r"it has a bias b, .*; set model.bias_init=-10.0, or model_load.dont_load=\['b'\]"
  ):
    two_towers.load(fresh(softmax), path, given(softmax))
  assert "b" not in two_towers.load(fresh(softmax), path, given(softmax), dont_load=["b"])


def test_a_file_of_something_else_is_told_by_its_parts(saved):
  params = of_file(SIGLIP)
  image = saved(params["img"], "image.npz")
  with pytest.raises(
    UserError, match=r"not a file of b, img, t, txt: it lacks b, img, t and 1 more; it has besides MAP"
  ):
    two_towers.load(fresh(SIGLIP), image, given(SIGLIP))
  both = saved(params, "both.npz")
  with pytest.raises(UserError, match=r"not a file of img, t: it has besides b, txt$"):
    one_tower.load(fresh(CLIPPO), both, given(CLIPPO))
  with pytest.raises(UserError, match=r"image.npz: holds no temperature t$"):
    two_towers.load(fresh(SIGLIP), dict(t=image), given(SIGLIP))
  with pytest.raises(UserError, match=r"its temperature t is \[2\] numbers, not one$"):
    two_towers.load(fresh(SIGLIP), dict(t=saved(params | {"t": np.ones(2, np.float32)})), given(SIGLIP))


def test_another_vocabulary_or_length_of_texts_is_refused_with_both_numbers(saved):
  path = saved(of_file(SIGLIP))
  gemma = SIGLIP | dict(text=SIGLIP["text"] | dict(vocab_size=256_000))
  with pytest.raises(UserError, match=r"^txt: .* its vocabulary has 100 tokens, and that of the model 256,000"):
    two_towers.load(fresh(gemma), path, given(gemma))
  with pytest.raises(UserError, match=r"^txt: .* for texts of 8 tokens, and those here have 16"):
    two_towers.load(fresh(SIGLIP, length=16), path, given(SIGLIP))
  longer = saved(of_file(LIT, length=8), "lit.npz")  # BERT has positions for more.
  assert_same(two_towers.load(fresh(LIT, length=16), longer, given(LIT)), of_file(LIT))


@pytest.mark.parametrize(
  "init_file, line",
  [
    (dict(imgae="a.npz"), "config.model_init.imgae is no part of this model (did you mean 'image'?)"),
    (dict(image="a.npz", img="b.npz"), "config.model_init has 'img' twice"),
    (dict(bias="a.npz"), "config.model_init.bias: the model has no 'b'; set model.bias_init"),
    (dict(text="no/such.npz"), "no/such.npz: no such file"),
    ("no/such.npz", "no/such.npz: no such file"),
  ],
)
def test_a_wrong_place_is_one_line(init_file, line):
  cfg = SIGLIP | dict(bias_init=None)
  with pytest.raises(UserError) as e:
    two_towers.load(fresh(cfg), init_file, given(cfg))
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_one_tower_has_no_text_tower():
  with pytest.raises(UserError, match=r"config.model_init.text: the model has no 'txt'$"):
    one_tower.load(fresh(CLIPPO), dict(text="a.npz"), given(CLIPPO))
