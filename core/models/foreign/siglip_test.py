"""SigLIP against transformers, by what it computed (../witness/generate_text.py)."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from core import data_files, trees
from core.errors import UserError
from core.models import text_transformer, two_towers, vit
from core.models.foreign import siglip, table
from core.testing import compilation

WITNESS = data_files.find("core/models/witness/text_hf.npz")
SIZES = dict(width=24, depth=2, mlp_dim=48, num_heads=2)
TEXT = dict(vocab_size=50, max_len=6, **SIZES)
OPTIONS = dict(
  image=dict(patch_size=8, pool_type="map", **SIZES),
  text=TEXT,
  out_dim=(None, 24),
  bias_init=-10.0,
  temperature_init=10.0,
)
STATED = two_towers.Model(**OPTIONS).options

quick_compilation = compilation.quick()


def witness(case):
  """The state dict and config of a case, and all that the file holds besides."""
  with np.load(WITNESS) as file:
    prefix = f"{case}/state_dict/"
    arrays = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    rest = {name: file[name] for name in file.files if "state_dict" not in name}
  return arrays, json.loads(str(rest[f"{case}/config"])), rest


def folder_of(state_dict, config, folder):
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})
  (folder / "config.json").write_text(json.dumps(config))
  return str(folder)


def fresh(model=None, image=32):
  model = model or two_towers.Model(**OPTIONS)
  inputs = jnp.zeros((1, image, image, 3)), jnp.zeros((1, 6), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def logits_of(model, params, image, text):
  def logits(params, image, text):
    zimg, ztxt, out = model.apply({"params": params}, image, text)
    return zimg, ztxt, zimg @ ztxt.T * out["t"] + out["b"]

  return jax.jit(logits)(params, image, text)


@pytest.mark.parametrize("scan", [False, True])
def test_both_towers_temperature_and_bias_are_those_of_transformers(scan, tmp_path):
  state_dict, config, rest = witness("siglip")
  options = OPTIONS | {kind: OPTIONS[kind] | dict(scan=scan) for kind in ("image", "text")}
  model = two_towers.Model(**options)
  params = two_towers.load(fresh(model), folder_of(state_dict, config, tmp_path), model.options)
  zimg, ztxt, logits = logits_of(model, params, rest["image"], rest["text"])
  np.testing.assert_allclose(zimg, rest["siglip/zimg"], atol=1e-5)
  np.testing.assert_allclose(ztxt, rest["siglip/ztxt"], atol=1e-5)
  np.testing.assert_allclose(logits, rest["siglip/logits"], atol=1e-4)
  assert np.ptp(logits) > 0.1


def test_the_text_tower_alone_is_that_of_transformers(tmp_path):
  state_dict, config, rest = witness("siglip_text")
  options = TEXT | dict(num_classes=16, gelu="exact")
  model = text_transformer.Model(**options)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6), jnp.int32))["params"]
  params = text_transformer.load(shapes, folder_of(state_dict, config, tmp_path), model.options)
  output, _ = jax.jit(model.apply)({"params": params}, rest["text"])
  np.testing.assert_allclose(output, rest["siglip_text/output"], atol=1e-4)
  with pytest.raises(UserError, match=r"its model has gelu='exact', ours 'tanh': set model.gelu='exact'"):
    text_transformer.load(shapes, str(tmp_path), text_transformer.Model(**TEXT).options)


def test_the_towers_of_a_file_load_into_models_of_one_tower(tmp_path):
  state_dict, config, _ = witness("siglip")
  path = folder_of(state_dict, config, tmp_path)
  whole = two_towers.load(fresh(), path, STATED)
  shapes = fresh()
  jax.tree.map(np.testing.assert_array_equal, text_transformer.load(shapes["txt"], path, STATED.text), whole["txt"])
  jax.tree.map(np.testing.assert_array_equal, vit.load(shapes["img"], path, STATED.image), whole["img"])
  by_parts = two_towers.load(fresh(), dict(image=path, text=path, t=path, b=path), STATED)
  jax.tree.map(np.testing.assert_array_equal, by_parts, whole)


def test_a_bias_that_one_side_lacks_is_told(tmp_path):
  state_dict, config, _ = witness("siglip")
  model = two_towers.Model(**OPTIONS | dict(bias_init=None))
  with pytest.raises(UserError, match=r"it has a bias b, as a model trained with a sigmoid; set model.bias_init"):
    two_towers.load(fresh(model), folder_of(state_dict, config, tmp_path), model.options)
  del state_dict["logit_bias"]
  with pytest.raises(UserError, match=r"it has no bias b, as a model trained with a softmax; set model.bias_init=None"):
    two_towers.load(fresh(), folder_of(state_dict, config, tmp_path), STATED)


def test_what_is_written_is_what_was_read(tmp_path):
  """And what transformers reads: `generate_text.py --check` of the folder that WRITE_SIGLIP_TO names."""
  state_dict, config, rest = witness("siglip")
  model = two_towers.Model(**OPTIONS)
  params = two_towers.load(fresh(), folder_of(state_dict, config, tmp_path / "in"), STATED)
  form = siglip.FORMATS["hf"]
  flat = {name: np.asarray(leaf) for name, leaf in trees.flatten_with_names(params)}
  written = table.to_foreign(form.writing(model, (32, 32)), flat, source="export")
  assert set(written) == set(state_dict)
  for name, array in written.items():
    np.testing.assert_array_equal(array, state_dict[name], err_msg=name)
  ours = form.config(model, (32, 32))
  for part in ("text_config", "vision_config"):
    assert {name: config[part].get(name) for name in ours[part] if name != "dtype"} == {
      name: value for name, value in ours[part].items() if name != "dtype"
    }
  out = folder_of(written, ours, Path(os.environ.get("WRITE_SIGLIP_TO", tmp_path / "out")))
  np.savez(Path(out, "example.npz"), image=rest["image"], text=rest["text"], logits=rest["siglip/logits"])
  jax.tree.map(np.testing.assert_array_equal, two_towers.load(fresh(), out, STATED), params)


def test_a_text_tower_is_written_as_it_was_read(tmp_path):
  state_dict, config, _ = witness("siglip_text")
  model = text_transformer.Model(num_classes=16, gelu="exact", **TEXT)
  form = siglip.TEXT_FORMATS["hf"]
  published = table.to_published(form.reading(state_dict), state_dict, source="in")
  written = table.to_foreign(form.writing(model, (0, 0)), published, source="out")
  assert {name.removeprefix("text_model.") for name in written} == set(state_dict)
  ours = form.config(model, (0, 0))
  assert {name: config[name] for name in ours if name != "dtype"} == {
    name: value for name, value in ours.items() if name != "dtype"
  }
  assert form.options(written, ours) == dict(num_heads=2, norm_eps=1e-6, gelu="exact")


def test_a_model_without_a_bias_and_with_fixed_positions_is_written_as_what_computes_the_same(tmp_path):
  options = OPTIONS | dict(bias_init=None)
  options |= dict(text=TEXT | dict(posemb="sincos"), image=OPTIONS["image"] | dict(posemb="sincos2d"))
  model = two_towers.Model(**options)
  state_dict, config, rest = witness("siglip")
  whole = two_towers.load(fresh(), folder_of(state_dict, config, tmp_path / "in"), STATED)
  flat = {name: np.asarray(leaf) for name, leaf in trees.flatten_with_names(whole)}
  ours = {name: flat[name] for name, _ in trees.flatten_with_names(fresh(model))}
  form = siglip.FORMATS["hf"]
  written = table.to_foreign(form.writing(model, (32, 32)), ours, source="export")
  again = two_towers.load(fresh(), folder_of(written, form.config(model, (32, 32)), tmp_path / "out"), STATED)

  @jax.jit
  def both(ours, again, image, text):
    pairs = (model, ours), (two_towers.Model(**OPTIONS), again)
    return [each.apply({"params": params}, image, text)[:2] for each, params in pairs]

  got, expected = both(trees.from_names(ours), again, rest["image"], rest["text"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)
  np.testing.assert_array_equal(again["b"], np.zeros(1))


@pytest.mark.parametrize(
  "change, line",
  [
    (dict(image=dict(pool_type="gap", patch_size=8, **SIZES)), "has pool_type='map' and no head"),
    (dict(out_dim=(24, 24)), "not pool_type='map' and a head of 24"),
    (dict(out_dim=(None, 16)), "embeddings of 24 numbers of images and 16 of texts (out_dim)"),
    (
      dict(text=TEXT | dict(pool_type="first")),
      "pools the last token and has a head with a bias; not pool_type='first'",
    ),
    (dict(text_model="bert", text=dict(config="base")), "is a ViT and a text_transformer; these are other towers"),
    (dict(image_model="bit", image=dict(variant="26x1")), "is a ViT and a text_transformer; these are other towers"),
  ],
)
def test_a_model_that_transformers_lacks_is_one_line(change, line):
  with pytest.raises(UserError) as e:
    siglip.FORMATS["hf"].writing(two_towers.Model(**(OPTIONS | change)), (32, 32))
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_other_activations_are_one_line(tmp_path):
  state_dict, config, _ = witness("siglip_text")
  path = folder_of(state_dict, config | {"hidden_act": "quick_gelu"}, tmp_path)
  with pytest.raises(UserError, match="hidden_act 'quick_gelu' is an activation that our text transformer lacks"):
    text_transformer.load(fresh()["txt"], path)
