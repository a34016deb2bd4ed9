"""Weights of timm and transformers in and out, against what those libraries computed with them.

witness/generate_mixer_resnet.py made the vectors.
"""

import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from core import data_files, trees
from core.errors import UserError
from core.models import mixer, registry, resnet
from core.models.foreign import mixer as foreign_mixer
from core.models.foreign import registry as foreign
from core.models.foreign import resnet as foreign_resnet
from core.models.foreign import table
from core.testing.params import shapes

WITNESS = data_files.find("core/models/witness")
MIXER = dict(patch_size=8, hidden_dim=32, num_blocks=2, tokens_mlp_dim=24, channels_mlp_dim=64, gelu="exact")
RESNET = dict(width=0.5, depth=(2, 1))
CASES = {
  "mixer_timm": ("mixer", "timm", mixer.Model(7, **MIXER)),
  "resnet_timm": ("resnet", "timm", resnet.Model(7, **RESNET)),
  "resnet_hf": ("resnet", "hf", resnet.Model(7, **RESNET)),
}


def witness(name):
  with np.load(WITNESS / f"{name}.npz") as file:
    arrays = {key: array.astype(np.float32) for key, array in file.items() if key != "made_by"}
  state_dict = {key.removeprefix("state_dict/"): arrays.pop(key) for key in list(arrays) if key.startswith("state_")}
  return state_dict, {key.removeprefix("exact/"): array for key, array in arrays.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_another_library_gives_the_logits_of_that_library(name, tmp_path):
  family, _, model = CASES[name]
  state_dict, expected = witness(name)
  path = str(tmp_path / "model.safetensors")
  safetensors.numpy.save_file(state_dict, path)
  params = registry.get(family).load(shapes(model), path)
  logits, _ = jax.jit(model.apply)({"params": params}, expected["image"])
  assert np.std(expected["logits"]) > 0.2
  np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


def test_timms_kind_of_gelu_is_asked_for_unless_the_config_states_its_own(tmp_path):
  path = str(tmp_path / "model.safetensors")
  safetensors.numpy.save_file(witness("mixer_timm")[0], path)
  default = {option: value for option, value in MIXER.items() if option != "gelu"}
  tree = shapes(mixer.Model(7, **default))
  with pytest.raises(UserError, match=r"its model has gelu='exact', ours 'tanh': set model.gelu='exact'"):
    mixer.load(tree, path, mixer.Model(**default).options)
  for gelu in ("exact", "tanh"):
    mixer.load(tree, path, mixer.Model(**default, gelu=gelu).options)


@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_what_was_read_is_written_as_it_was(name, with_head):
  family, library, model = CASES[name]
  state_dict, _ = witness(name)
  if not with_head:
    state_dict = {key: array for key, array in state_dict.items() if not key.startswith(("head", "classifier"))}
    model = model.clone(num_classes=None)
    if library == "hf":  # The model without a head is BitModel there, whose names have no prefix.
      state_dict = {key.removeprefix("bit."): array for key, array in state_dict.items()}
  form = foreign.get(family)[library]
  published = table.to_published(form.reading(state_dict), state_dict, source="x")
  expected = trees.flatten_with_names(shapes(model))
  assert {key: array.shape for key, array in published.items()} == {key: leaf.shape for key, leaf in expected}
  written = table.to_foreign(form.writing(model, (32, 32)), published, source="x")
  assert set(written) == set(state_dict)
  for key, array in written.items():
    np.testing.assert_array_equal(array, state_dict[key])


def test_each_library_is_told_apart():
  for name, (family, library, _) in CASES.items():
    recognized = [key for key, form in foreign.get(family).items() if form.recognizes(witness(name)[0])]
    assert recognized == [library]


def test_configs_name_the_architectures_of_the_libraries():
  config = foreign_mixer.FORMATS["timm"].config(mixer.Model(10, variant="B/32", gelu="exact"), (224, 224))
  assert (config["architecture"], config["num_classes"], config["num_features"]) == ("mixer_b32_224", 10, 768)
  assert config["model_args"] == {"num_classes": 10, "img_size": [224, 224]}
  narrow = mixer.Model(variant="L/16", tokens_mlp_dim=333)
  ratios = foreign_mixer.FORMATS["timm"].config(narrow, (192, 192))["model_args"]["mlp_ratio"]
  assert [int(ratio * 1024) for ratio in ratios] == [333, 4096]  # How timm turns them into sizes.
  config = foreign_resnet.FORMATS["timm"].config(resnet.Model(variant="R152x4"), (480, 320))
  assert (config["architecture"], config["num_features"]) == ("resnetv2_152x4_bit", 8192)
  assert config["pretrained_cfg"]["input_size"] == [3, 480, 320]
  config = foreign_resnet.FORMATS["hf"].config(resnet.Model(2, width=2, depth=26), (224, 224))
  assert config["architectures"] == ["BitForImageClassification"]
  assert (config["embedding_size"], config["hidden_sizes"]) == (128, [512, 1024, 2048, 4096])
  assert config["depths"] == [2, 2, 2, 2]
  assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}


@pytest.mark.parametrize(
  "write, line",
  [
    (
      lambda: foreign_mixer.FORMATS["timm"].writing(mixer.Model(7), (224, 224)),
      "exact GELU; export with the option gelu='exact'",
    ),
    (
      lambda: foreign_mixer.FORMATS["timm"].config(mixer.Model(7, variant="H/14"), (224, 224)),
      "no Mixer of 32 blocks of wid",
    ),
    (
      lambda: foreign_resnet.FORMATS["timm"].config(resnet.Model(7, depth=26), (224, 224)),
      "no BiT of depth 26 and width 1",
    ),
    *(
      (
        lambda format=format: foreign_resnet.FORMATS[format].config(
          resnet.Model(7, variant="50x1", root_padding="-inf"), (224, 224)
        ),
        "root_padding is '-inf'; the BiTs of timm and transformers pool with zeros around",
      )
      for format in ("timm", "hf")
    ),
  ],
)
def test_what_a_library_lacks_is_one_line(write, line):
  with pytest.raises(UserError) as e:
    write()
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_the_post_activation_kind_of_timm_is_refused_by_name():
  state_dict = witness("resnet_timm")[0] | {"stem.norm.weight": np.ones(32, np.float32)}
  with pytest.raises(UserError, match=r"it has besides stem.norm.weight$"):
    table.to_published(foreign_resnet.TIMM, state_dict, source="x")


def test_no_table_imports_a_model():
  for module in (foreign_mixer, foreign_resnet):
    imported = {value.__name__ for value in vars(module).values() if isinstance(value, types.ModuleType)}
    assert imported <= {"core.models.foreign.timm_config", "core.models.foreign.config_keys"}
