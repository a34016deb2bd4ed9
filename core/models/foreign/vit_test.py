import hashlib
import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from core import data_files, trees
from core.errors import UserError
from core.models import vit
from core.models.foreign import table
from core.models.foreign import vit as foreign_vit
from core.testing import compilation, torch_files
from core.testing.params import shapes

WITNESS = data_files.find("core/models/witness/vit_foreign.npz")
# What the cases of witness/generate_foreign_vit.py need of our model, beside sizes that they share.
CASES = {
  "vit": dict(pool_type="tok", gelu="exact", num_classes=7),
  "gap": dict(pool_type="gap", gelu="exact", num_classes=7, qkv_bias=False),
  "fc_norm": dict(pool_type="gap", gelu="exact", num_classes=7, registers=1, fc_norm=True),
  "map": dict(pool_type="map", num_classes=7),
  "deit3": dict(pool_type="tok", gelu="exact", num_classes=7),
  "dinov2_registers": dict(pool_type="tok", gelu="exact", registers=4),
  "dinov2_swiglu": dict(pool_type="tok", swiglu=True),
  "hf_vit": dict(pool_type="tok", gelu="exact", num_classes=7, norm_eps=1e-12),
  "hf_vit_pooler": dict(pool_type="tok", gelu="tanh", rep_size=24, norm_eps=1e-2),
  "hf_dinov2_swiglu": dict(pool_type="tok", swiglu=True, mlp_dim=32),
  "hf_dinov2_registers": dict(pool_type="tok", gelu="exact", registers=4),
  "hf_siglip": dict(pool_type="map", gelu="tanh"),
  "hf_siglip_classifier": dict(pool_type="gap", gelu="tanh", num_classes=7),
}
SIZES = dict(patch_size=(8, 8), width=24, depth=2, mlp_dim=48)
DEFAULTS = dict(
  num_classes=None, swiglu=False, qkv_bias=True, registers=0, fc_norm=False, rep_size=False, posemb="learn"
)
# Whose LayerScale is folded into the kernels, or whose class token's position into the token: another state dict, which
# computes the same.
FOLDED = {"deit3", "dinov2_registers", "dinov2_swiglu", "hf_dinov2_swiglu", "hf_dinov2_registers"}

quick_compilation = compilation.quick()


def witness(case):
  """The state dict, config and output of a case, and the images that all have in common."""
  with np.load(WITNESS) as file:
    prefix = f"{case}/state_dict/"
    arrays = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays, json.loads(str(file[f"{case}/config"])), file[f"{case}/output"], file["image"]


def folder_of(state_dict, config, folder):
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(state_dict, folder / "model.safetensors")
  if config:
    (folder / "config.json").write_text(json.dumps(config))
  return str(folder)


def named(tree):
  return dict(trees.flatten_with_names(tree))


def apply(model, params, image):
  return jax.jit(lambda params, image: model.apply({"params": params}, image)[0])(params, image)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_other_library(case, tmp_path):
  state_dict, config, expected, image = witness(case)
  options = SIZES | CASES[case] | dict(num_heads=2)
  model = vit.Model(**options, scan=case in ("deit3", "hf_vit"))
  params = vit.load(shapes(model), folder_of(state_dict, config, tmp_path), model.options)
  np.testing.assert_allclose(apply(model, params, image), expected, atol=1e-4)


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema"])
def test_a_location_names_the_raw_weights_or_the_average_is_taken(averaged, tmp_path, capsys):
  raw, _, _, _ = witness("vit")
  path = tmp_path / "x.pth"
  torch_files.save(path, {"state_dict": raw, averaged: {name: array + 1 for name, array in raw.items()}})
  model = vit.Model(**SIZES, **CASES["vit"], num_heads=2)

  def bias(location):
    return vit.load(shapes(model), location, model.options)["head"]["bias"]

  np.testing.assert_array_equal(bias(f"{path}:state_dict"), raw["head.bias"])
  sums = f"#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"
  for location in (f"{path}:state_dict{sums}", f"{path}{sums}:state_dict"):
    np.testing.assert_array_equal(bias(location), raw["head.bias"])
  assert capsys.readouterr().err == ""
  np.testing.assert_array_equal(bias(f"{path}:{averaged}"), raw["head.bias"] + 1)
  assert capsys.readouterr().err == ""
  np.testing.assert_array_equal(bias(str(path)), raw["head.bias"] + 1)
  line = f"x.pth: its averaged weights are read ({averaged}), not the raw ones; x.pth:state_dict names those\n"
  assert capsys.readouterr().err == line
  with pytest.raises(UserError, match=r"x\.pth: holds no entry 'state' \(did you mean 'state_dict'\?\)"):
    bias(f"{path}:state")
  torch_files.save(path, raw)
  with pytest.raises(UserError, match=r"x\.pth: holds no entry 'state_dict': it has none, only arrays"):
    bias(f"{path}:state_dict")


@pytest.mark.parametrize("case", CASES)
def test_the_options_that_a_file_needs_can_be_found(case):
  state_dict, config, _, _ = witness(case)
  found = foreign_vit.options_of(state_dict, config)
  heads = dict(num_heads=2, norm_eps=1e-6) if config else {}
  wanted = DEFAULTS | SIZES | heads | CASES[case]
  if case == "hf_dinov2_swiglu" or "siglip" in case:
    wanted |= {key: found[key] for key in ("num_heads", "norm_eps") if key in found}
  assert found == wanted


@pytest.mark.parametrize("case", CASES)
def test_the_table_gives_the_state_dict_back(case):
  state_dict, _, _, _ = witness(case)
  form = table.recognize(foreign_vit.FORMATS, state_dict, source=case)
  rules = form.reading(state_dict)
  back = table.to_foreign(rules, table.to_published(rules, state_dict, source=case), source=case)
  assert set(back) == set(state_dict)
  for name, array in back.items():
    if case not in FOLDED or "position" in name or "norm" in name:
      np.testing.assert_array_equal(array, state_dict[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_the_same_model_when_read_again(case, tmp_path):
  state_dict, config, _, _ = witness(case)
  options = SIZES | CASES[case] | dict(num_heads=2)
  model = vit.Model(**options)
  params = vit.load(shapes(model), folder_of(state_dict, config, tmp_path / "in"), model.options)
  form = foreign_vit.FORMATS["hf" if case.startswith("hf") else "timm"]
  written = table.to_foreign(form.writing(model, (32, 32)), named(params), source=case)
  # All that the library has, but for LayerScale, which timm's ViT can do without; a SigLIP tower alone has a prefix.
  bare = {name.removeprefix("vision_model.") for name in written}
  assert bare == {name.removeprefix("vision_model.") for name in state_dict if ".ls" not in name}
  config = json.loads(json.dumps(form.config(model, (32, 32))))
  again = vit.load(shapes(model), folder_of(written, config, tmp_path / "out"), model.options)
  jax.tree.map(np.testing.assert_array_equal, again, params)


# Names of the repositories that timm and transformers have their models from.


def renamed(state_dict, *changes):
  for old, new in changes:
    state_dict = {re.sub(old, new, name): array for name, array in state_dict.items()}
  return state_dict


@pytest.mark.parametrize(
  "case, changes, surplus",
  [
    ("deit3", [(r"ls(\d)\.gamma", r"gamma_\1")], {}),
    ("dinov2_registers", [("reg_token", "register_tokens")], {"mask_token": (1, 24), "dino_head.mlp.0.bias": (3,)}),
    ("dinov2_swiglu", [("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")], {"mask_token": (1, 24)}),
    # MoCo v3: two encoders with projectors, and a predictor. DINO: the teacher's backbone with its head.
    (
      "dinov2_registers",
      [("^", "module.base_encoder.")],
      {
        "module.base_encoder.head.0.weight": (8, 24),
        "module.base_encoder.head.1.running_mean": (8,),
        "module.momentum_encoder.cls_token": (1, 1, 24),
        "module.predictor.0.weight": (8, 8),
      },
    ),
    ("dinov2_registers", [("^", "module.backbone.")], {"module.head.mlp.0.weight": (8, 24)}),
    ("hf_siglip", [("^", "vision_model.")], {"text_model.head.bias": (3,), "logit_scale": (1,)}),
    (
      "hf_vit",
      [
        (r"encoder\.layer\.", "layers."),
        (r"attention\.attention\.(.)[a-z]*\.", r"attention.\1_proj."),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
      ],
      {},
    ),
  ],
)
def test_other_names_and_wrappers_give_the_same_weights(case, changes, surplus, tmp_path):
  state_dict, config, _, _ = witness(case)
  model = vit.Model(**SIZES, **CASES[case], num_heads=2)
  expected = vit.load(shapes(model), folder_of(state_dict, config, tmp_path / "plain"))
  other = renamed(state_dict, *changes) | {name: np.ones(shape, np.float32) for name, shape in surplus.items()}
  assert set(other) != set(state_dict)
  params = vit.load(shapes(model), folder_of(other, {}, tmp_path / "other"))
  jax.tree.map(np.testing.assert_array_equal, params, expected)


# What cannot be.


def test_another_gelu_or_number_of_heads_is_refused_unless_stated(tmp_path):
  state_dict, config, _, _ = witness("hf_vit")
  path = folder_of(state_dict, config, tmp_path)
  options = SIZES | dict(pool_type="tok", num_heads=2)
  tree = shapes(vit.Model(7, **options))
  with pytest.raises(
    UserError,
    match=r"has gelu='exact', ours 'tanh', norm_eps=1e-12, ours 1e-06: set model.gelu='exact', model.norm_eps=1e-12, "
    "or state gelu='tanh', norm_eps=1e-06 to keep ours",
  ):
    vit.load(tree, path, vit.Model(**options).options)
  vit.load(tree, path, vit.Model(**options, gelu="tanh", norm_eps=1e-6).options)
  with pytest.raises(UserError, match=r"its model has num_heads=2, ours 4: set model.num_heads=2$"):
    vit.load(tree, path, vit.Model(**options | dict(num_heads=4, gelu="exact", norm_eps=1e-12)).options)


def test_a_model_of_other_options_is_told_which(tmp_path):
  state_dict, config, _, _ = witness("dinov2_registers")
  options = SIZES | dict(num_heads=2, pool_type="map", gelu="exact")
  model = vit.Model(**options)
  with pytest.raises(UserError) as e:
    vit.load(shapes(model), folder_of(state_dict, config, tmp_path), model.options)
  assert "; its model has pool_type='tok', ours 'map'; its model has registers=4, ours 0" in str(e.value)


@pytest.mark.parametrize(
  "library, options, line",
  [
    ("timm", dict(pool_type="tok", rep_size=True), "timm's VisionTransformer has nothing for rep_size=True"),
    ("timm", dict(pool_type="0", norm_eps=1e-5), "nothing for pool_type='0', norm_eps=1e-05"),
    ("timm", dict(pool_type="none", num_classes=7), "nothing for pool_type='none' with a head or registers"),
    ("hf", dict(pool_type="map", num_classes=7), "computes the same as ViT with pool_type='map', num_classes=7"),
    ("hf", dict(pool_type="tok", num_classes=7, registers=2), "registers=2"),
    ("hf", dict(pool_type="gap", num_classes=7, fc_norm=True), "fc_norm=True"),
    ("hf", dict(pool_type="gap", num_classes=7, qkv_bias=False), "qkv_bias=False"),
    ("hf", dict(pool_type="tok", swiglu=True, mlp_dim=44), "swiglu=True"),
    ("hf", dict(pool_type="map", patch_size=(8, 4)), "transformers' siglip models have square images and patches"),
  ],
)
def test_a_model_that_a_library_lacks_is_one_line(library, options, line):
  model = vit.Model(**SIZES | options, num_heads=2)
  with pytest.raises(UserError) as e:
    foreign_vit.FORMATS[library].writing(model, (32, 32))
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_other_activations_are_one_line(tmp_path):
  state_dict, config, _, _ = witness("hf_vit")
  path = folder_of(state_dict, config | {"hidden_act": "quick_gelu"}, tmp_path)
  with pytest.raises(UserError, match="hidden_act 'quick_gelu' is an activation that our ViT lacks"):
    vit.load(shapes(vit.Model(7, **SIZES, num_heads=2, pool_type="tok")), path)


def test_a_distilled_deit_is_refused_by_the_token_that_we_lack(tmp_path):
  state_dict, _, _, _ = witness("vit")
  path = folder_of(state_dict | {"dist_token": np.ones((1, 1, 24), np.float32)}, {}, tmp_path)
  with pytest.raises(UserError, match="not the parameters of this kind of model: it has besides dist_token"):
    vit.load(shapes(vit.Model(7, **SIZES, num_heads=2, pool_type="tok")), path)
