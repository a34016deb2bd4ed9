"""Models of timm and transformers by what they computed, or by the line that refuses them.

Made by ../witness/generate_architectures.py, which makes every other architecture as well, for
../witness/check_architectures.py; docs/weights.md has what came of it.
"""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from core import data_files
from core.errors import UserError
from core.models import bert, grids, vit, weights
from core.models.foreign import config_keys, timm_config
from core.models.foreign import vit as foreign_vit
from core.testing import compilation
from core.testing.params import shapes

WITNESS = data_files.find("core/models/witness/architectures.npz")
TIMM = dict(num_classes=5, width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=8, gelu="exact")
HF = TIMM | dict(gelu="tanh")
READ = {
  "reg1": TIMM | dict(pool_type="gap", registers=1, fc_norm=True),
  "reg4_map": TIMM | dict(pool_type="map", registers=4),
  "cls_reg9": TIMM | dict(pool_type="tok", registers=9),
  "reg4_dinov2": TIMM | dict(pool_type="tok", registers=4),
  "siglip_gap": TIMM | dict(pool_type="gap"),
  "oblong": TIMM | dict(pool_type="tok"),
  "SiglipForImageClassification": HF | dict(pool_type="gap"),
  "Dinov2WithRegistersModel": TIMM | dict(num_classes=None, pool_type="tok", registers=4),
}
REFUSED = {
  "max": "global_pool is 'max', which our ViT lacks (it has token, avg and map)",
  "relu": "model_args.act_layer is 'relu', which our ViT lacks (it has gelu_tanh, gelu)",
  "rpn": "timm's vit_base_patch16_rpn_224 has norms after the branches",
  "rope_ape": "timm's vit_small_patch16_rope_ape_224 has rotary positions",
  "ViT_eps": "its model has norm_eps=0.1, ours 1e-06: set model.norm_eps=0.1, or state norm_eps=1e-06 to keep ours",
}

quick_compilation = compilation.quick()


@pytest.fixture(autouse=True)
def nothing_made(monkeypatch):
  """Oblong grids of this file's models are not those of other tests in this process."""
  monkeypatch.setattr(grids, "_MADE", {})


def witness(case):
  """The state dict and config of a case, its output if there is one, and the image."""
  with np.load(WITNESS) as file:
    prefix = f"{case}/state_dict/"
    arrays = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    output = file.get(f"{case}/output")
    return arrays, json.loads(str(file[f"{case}/config"])), output, file["image"]


def folder_of(state_dict, config, folder):
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(state_dict, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(config))
  return str(folder)


@pytest.mark.parametrize("case", READ)
def test_outputs_are_those_of_the_other_library(case, tmp_path):
  state_dict, config, expected, image = witness(case)
  image = image.reshape(2, 16, 64, 3) if case == "oblong" else image
  model = vit.Model(**READ[case])
  grid = (2, 8) if case == "oblong" else (4, 4)
  params = vit.load(shapes(model, image.shape), folder_of(state_dict, config, tmp_path), model.options, grid=grid)
  output, _ = jax.jit(model.apply)({"params": params}, image)
  np.testing.assert_allclose(output, expected, atol=1e-4)


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_computes_otherwise_is_refused_in_a_line(case, tmp_path):
  state_dict, config, _, _ = witness(case)
  pool = "gap" if "cls_token" not in state_dict and case != "ViT_eps" else "tok"
  model = vit.Model(**TIMM | dict(pool_type=pool))
  with pytest.raises(UserError) as e:
    vit.load(shapes(model), folder_of(state_dict, config, tmp_path / case), model.options)
  assert REFUSED[case] in str(e.value)


@pytest.mark.parametrize(
  "case, line",
  [
    ("RobertaModel", "model_type is 'roberta', which computes otherwise than 'bert'"),
    ("Bert_decoder", "is_decoder is True"),
  ],
)
def test_what_has_the_names_of_bert_and_is_another_model_is_refused(case, line, tmp_path):
  state_dict, config, _, _ = witness(case)
  with pytest.raises(UserError, match=line):
    bert.load({}, folder_of(state_dict, config, tmp_path))
  if case == "RobertaModel":  # Of before model_type.
    del config["model_type"]
    with pytest.raises(UserError, match="'RobertaModel' in architectures computes otherwise than BERT"):
      bert.load({}, folder_of(state_dict, config, tmp_path))


def test_the_grid_of_a_file_is_that_of_its_config(tmp_path):
  """2 x 8 patches are not 4 x 4, though both are 16."""
  state_dict, config, _, _ = witness("oblong")
  positions = np.zeros((1, 17, 16), np.float32)
  positions[0, 1:, 0] = np.arange(2).repeat(8)  # The row of each patch.
  model = vit.Model(**READ["oblong"])
  path = folder_of(state_dict | {"pos_embed": positions}, config, tmp_path)
  loaded = vit.load(shapes(model), path, model.options, grid=(4, 4))["pos_embedding"]
  rows = np.broadcast_to(np.linspace(0, 1, 4)[:, None], (4, 4))
  np.testing.assert_allclose(loaded[0, :, 0].reshape(4, 4), rows, atol=1e-6)


@pytest.mark.parametrize("kernel, of_what", [((16, 192), "NaFlex"), ((16, 3, 2, 8, 8), "videos (Vivit)")])
def test_patches_that_are_no_part_of_a_whole_image_are_one_line(kernel, of_what, tmp_path):
  name = "SiglipForImageClassification" if len(kernel) == 2 else "ViT_eps"
  state_dict, _, _, _ = witness(name)
  patches = next(key for key in state_dict if "patch_embedding" in key and key.endswith("weight"))
  path = folder_of(state_dict | {patches: np.zeros(kernel, np.float32)}, {}, tmp_path)
  with pytest.raises(UserError) as e:
    weights.read_file("vit", path)
  assert f"{patches}: {list(kernel)}, as of {of_what}" in str(e.value)


def test_an_array_of_other_axes_is_named(tmp_path):
  state_dict, config, _, _ = witness("siglip_gap")
  path = folder_of(state_dict | {"patch_embed.proj.weight": np.zeros((16, 192), np.float32)}, config, tmp_path)
  with pytest.raises(UserError, match=r"the shape of patch_embed.proj.weight \[16, 192\]"):
    weights.read_file("vit", path)


# What config.json says.


@pytest.mark.parametrize(
  "family, config, line",
  [
    ("vit", {"architecture": "vit_base_patch16_clip_quickgelu_224"}, "has a norm before the blocks"),
    ("vit", {"architecture": "my_vit"}, "'my_vit' is no vit of timm"),
    ("vit", {"architecture": "mixer_b16_224"}, "'mixer_b16_224' is no vit of timm"),
    ("vit", {"model_args": {"pool_include_prefix": True}}, "model_args.pool_include_prefix is True"),
    ("vit", {"model_args": {"norm_layer": "rmsnorm"}}, "model_args.norm_layer is 'rmsnorm'"),
    ("vit", {"model_args": {"attn_layer": "diff"}}, "model_args.attn_layer is 'diff'"),
    ("vit", {"model_args": {"gate": 3}}, "model_args.gate=3 is not known here and may change"),
    ("mixer", {"architecture": "gmixer_24_224"}, "has gated MLPs"),
    ("resnet", {"architecture": "resnetv2_50"}, "has BatchNorm"),
    ("nfnet", {"architecture": "nfnet_f0"}, "has no learned gain of the branches"),
    ("nfnet", {"model_args": {"gamma_in_act": True}}, "model_args.gamma_in_act is True"),
  ],
)
def test_what_timm_builds_otherwise_is_refused_by_its_key(family, config, line):
  with pytest.raises(UserError, match=line):
    timm_config.facts(config, family)


def test_an_architecture_tells_what_no_shape_does():
  facts = timm_config.facts({"architecture": "vit_so400m_patch16_siglip_256.v2_webli"}, "vit")
  assert {key: facts[key] for key in ("num_heads", "gelu", "pool")} == dict(num_heads=16, gelu="tanh", pool="map")
  facts = timm_config.facts({"architecture": "vit_base_patch16_siglip_224"}, "vit")
  assert facts["gelu"] == "exact"  # SigLIP's first ones were read into it by timm all the same.
  said = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 6, "img_size": 96, "gate": None}}
  assert timm_config.facts(said, "vit")["num_heads"] == 6
  assert timm_config.facts(said, "vit")["image_sizes"] == [(96, 96)]


@pytest.mark.parametrize(
  "change, line",
  [
    ({"pooler_act": "relu"}, "pooler_act is 'relu', which our model does not compute \\(it does 'tanh'\\)"),
    ({"use_rope": True}, "use_rope=True is not known here and may change what the model computes"),
    ({"model_type": "vit_mae"}, "model_type is 'vit_mae', which computes otherwise than 'vit'"),
    ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is an activation that our ViT lacks"),
  ],
)
def test_what_transformers_computes_otherwise_is_refused_by_its_key(change, line):
  state_dict, config, _, _ = witness("ViT_eps")
  with pytest.raises(UserError, match=line):
    foreign_vit.FORMATS["hf"].options(state_dict, config | change)


def test_keys_without_effect_are_passed_over():
  config_keys.check({"top_k": 50, "_commit": "abc", "use_rope": False, "new": None, "dtype": "float32", "rows": []})
