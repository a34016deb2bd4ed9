"""NFNets' weights of timm in and out, against what timm computed with them (witness/generate_nfnet.py)."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from core import data_files, trees
from core.errors import UserError
from core.models import nfnet
from core.models.foreign import nfnet as foreign
from core.models.foreign import table
from core.testing import compilation
from core.testing.params import shapes, with_options

WITNESS = data_files.find("core/models/witness/nfnet_timm.npz")
TINY = dict(depth=(1, 2, 2, 1), width=(32, 32, 48, 48), stem_width=32, group_size=8, final_width=64)
TIMM = foreign.FORMATS["timm"]

quick_compilation = compilation.quick()


@pytest.fixture(scope="module")
def witness():
  with np.load(WITNESS) as file:
    return {key: array.astype(np.float32) for key, array in file.items() if key != "made_by"}


@pytest.fixture(scope="module")
def state_dict(witness):
  return {key.removeprefix("state_dict/"): array for key, array in witness.items() if key.startswith("state_dict/")}


def test_logits_and_input_gradients_are_those_of_timm(witness, state_dict, tmp_path):
  path = str(tmp_path / "model.safetensors")
  safetensors.numpy.save_file(state_dict, path)
  model = nfnet.Model(7, gelu="exact", **TINY)
  params = nfnet.load(shapes(model), path, model.options)
  with pytest.raises(UserError, match=r"its model has gelu='exact', ours 'tanh': set model\.gelu='exact'"):
    nfnet.load(shapes(model), path, nfnet.Model(7, **TINY).options)

  @jax.jit
  def logits_and_grad(params, image, cotangent):
    logits, pullback = jax.vjp(lambda image: model.apply({"params": params}, image)[0], image)
    return logits, pullback(cotangent)[0]

  logits, image_grad = logits_and_grad(params, witness["image"], witness["cotangent"])
  np.testing.assert_allclose(logits, witness["logits"], atol=1e-5)
  np.testing.assert_allclose(image_grad, witness["image_grad"], atol=1e-6)
  # The published approximation of GELU gives other numbers: the witness can tell.
  published, _ = jax.jit(with_options(model, gelu="tanh").apply)({"params": params}, witness["image"])
  assert 1e-4 < np.abs(published - witness["logits"]).max() < 1e-2


@pytest.mark.parametrize("with_head", [True, False])
def test_what_was_read_is_written_as_it_was(state_dict, with_head):
  if not with_head:
    state_dict = {name: array for name, array in state_dict.items() if not name.startswith("head.")}
  model = nfnet.Model(7 if with_head else None, gelu="exact", **TINY)
  published = table.to_published(TIMM.reading(state_dict), state_dict, source="x")
  expected = trees.flatten_with_names(shapes(model))
  assert {name: array.shape for name, array in published.items()} == {name: leaf.shape for name, leaf in expected}
  written = table.to_foreign(TIMM.writing(model, (64, 64)), published, source="x")
  assert set(written) == set(state_dict)
  for name, array in written.items():
    # A gain went through a factor and back, which may cost it its last bit.
    tolerance = 3e-7 if name.endswith(".gain") else 0
    np.testing.assert_allclose(array, state_dict[name], rtol=tolerance, err_msg=name)


def test_published_and_timm_standardization_differ_where_it_is_folded(state_dict):
  name = "stages.1.0.conv2"  # A kernel so small that the floors under the variance decide.
  kernel, gain = foreign._conv_to_published(state_dict[f"{name}.weight"], state_dict[f"{name}.gain"])
  assert np.all(np.abs(gain / state_dict[f"{name}.gain"].reshape(-1) - 1) > 0.05)
  weight = np.float64(state_dict[f"{name}.weight"])
  centered = weight - weight.mean(axis=(1, 2, 3), keepdims=True)
  fan_in = weight[0].size
  theirs = centered / np.sqrt(weight.var(axis=(1, 2, 3), keepdims=True) + 1e-5) * fan_in**-0.5
  theirs *= state_dict[f"{name}.gain"]
  np.testing.assert_allclose(nfnet.standardize(kernel, gain), theirs.transpose(2, 3, 1, 0), atol=1e-6)


@pytest.mark.parametrize(
  "config, options",
  [
    ({}, {"activation": "gelu", "gelu": "exact"}),
    ({"model_args": {"act_layer": "silu"}}, {"activation": "silu"}),
  ],
)
def test_a_file_tells_the_options_that_no_shape_tells(state_dict, config, options):
  assert TIMM.recognizes(state_dict)
  assert TIMM.options(state_dict, config) == options


def test_configs_name_the_architecture_of_timm_and_what_differs_from_it():
  config = TIMM.config(nfnet.Model(10, variant="F3", gelu="exact"), (320, 320))
  assert (config["architecture"], config["num_classes"], config["num_features"]) == ("dm_nfnet_f3", 10, 3072)
  assert config["model_args"] == {"num_classes": 10}
  config = TIMM.config(nfnet.Model(7, gelu="exact", **TINY), (64, 64))
  assert config["architecture"] == "dm_nfnet_f0"
  assert config["model_args"] == {
    "num_classes": 7,
    "depths": [1, 2, 2, 1],
    "channels": [32, 32, 48, 48],
    "stem_chs": 32,
    "group_size": 8,
    "num_features": 64,
  }


@pytest.mark.parametrize(
  "model, line",
  [
    (dict(variant="F0"), "exact GELU; export with the option gelu='exact'"),
    (dict(gelu="exact", depth=(1, 1), width=(64, 64), group_size=8), "have four stages, not 2"),
    (dict(gelu="exact", final_width=100), "channels in multiples of 8, but final_width is [100]"),
    (dict(activation="silu", se_ratio=0.49), "but se_ratio times width is [125.44"),
  ],
)
def test_what_timm_lacks_is_one_line(model, line):
  model = nfnet.Model(7, **model)
  with pytest.raises(UserError) as e:
    [write(model, (64, 64)) for write in (TIMM.writing, TIMM.config)]
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_the_other_nfnets_of_timm_are_refused(state_dict):
  others = {name: array for name, array in state_dict.items() if not name.endswith("skipinit_gain")}
  assert TIMM.recognizes(others)
  with pytest.raises(UserError, match="only dm_nfnet_f0 to f6 compute"):
    TIMM.reading(others)
