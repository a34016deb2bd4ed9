import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from core import trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import bert, mixer, text_transformer, two_towers, vit
from core.testing import compilation
from core.testing.params import random_like, shapes
from tools import export

TINY = dict(patch_size=8, width=16, depth=2, mlp_dim=32, num_heads=2, pool_type="tok")
CONFIG = """
from core.config import ConfigDict
def get_config(arg=None):
  return ConfigDict(dict(
    model_name="vit", model={model!r}, num_classes=7, input=dict(pp="decode|resize(64)|inception_crop(32)|flip_lr"),
  ))
"""

quick_compilation = compilation.quick()


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder to stand in, with a config and weights for it."""
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
  (tmp_path / "config.py").write_text(CONFIG.format(model=TINY))
  pretrained.save_params(tmp_path / "params.npz", random_like(shapes(vit.Model(7, **TINY))))
  return tmp_path


def run(*arguments, weights="params.npz"):
  return export.main(["--config=config.py", f"--weights={weights}", *arguments])


def named(params):
  return dict(trees.flatten_with_names(params))


def assert_same(params, others):
  params, others = named(params), named(others)
  assert set(params) == set(others)
  for name, array in params.items():
    np.testing.assert_array_equal(array, others[name], err_msg=name)


def outputs(model, params, image):
  return jax.jit(lambda params, image: model.apply({"params": params}, image)[0])(params, image)


@pytest.mark.parametrize("library", ["timm", "hf"])
def test_a_folder_for_another_library_holds_the_same_model(library, here):
  assert run(f"--to={library}", "--output=out") == 0
  model = vit.Model(7, **TINY)
  params = pretrained.load_params(str(here / "params.npz"))
  assert_same(vit.load(shapes(model), str(here / "out"), model.options), params)
  with np.load(here / "out" / "example.npz") as example:
    assert example["image"].shape == (2, 32, 32, 3)
    np.testing.assert_allclose(example["output"], outputs(model, params, example["image"]), atol=1e-4)


def test_the_config_of_timm_builds_the_model(here):
  run("--to=timm", "--output=out")
  config = json.loads((here / "out" / "config.json").read_text())
  assert config["architecture"] == "vit_base_patch16_224"
  assert (config["num_classes"], config["global_pool"]) == (7, "token")
  wanted = dict(img_size=[32, 32], embed_dim=16, depth=2, num_heads=2, act_layer="gelu_tanh", class_token=True)
  assert wanted.items() <= config["model_args"].items()
  assert int(config["model_args"]["mlp_ratio"] * 16) == 32
  assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]


def test_the_preprocessing_written_is_that_of_the_first_eval_else_of_the_training_or_as_stated(here, capsys):
  run("--to=timm", "--output=training")
  notes = capsys.readouterr().out
  assert "note: config.input.pp draws at random (inception_crop, flip_lr)" in notes
  evals = "--config.evals={'val': {'type': 'classification', 'pp_fn': 'decode|resize_small(64)|central_crop(56)'}}"
  run("--to=timm", "--output=evaluated", evals)
  run("--to=timm", "--output=stated", "--pp_img=decode|resize(32,'bicubic',antialias=True)|vgg_value_range", evals)
  run("--to=hf", "--output=hf", evals)
  told = {}
  for name in ("training", "evaluated", "stated"):
    settings = json.loads((here / name / "config.json").read_text())["pretrained_cfg"]
    told[name] = [settings[key] for key in ("crop_mode", "crop_pct", "interpolation", "mean")]
  assert told == {
    "training": ["squash", 1, "bilinear", [0, 0, 0]],
    "evaluated": ["center", 32 / 37, "hamming", [0, 0, 0]],  # 64 of 56 pixels are 37 of 32.
    "stated": ["squash", 1, "bicubic", [0.485, 0.456, 0.406]],
  }
  written = json.loads((here / "hf" / "preprocessor_config.json").read_text())
  assert (written["size"], written["crop_size"]) == ({"shortest_edge": 37}, {"height": 32, "width": 32})
  with pytest.raises(UserError, match=r"^--pp_img: resize_long there has no like"):
    run("--to=timm", "--output=other", "--pp_img=resize_long(32)")


def test_the_config_of_transformers_builds_the_model(here):
  run("--to=hf", "--output=out")
  config = json.loads((here / "out" / "config.json").read_text())
  assert (config["model_type"], config["architectures"]) == ("vit", ["ViTForImageClassification"])
  wanted = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32)
  assert wanted.items() <= config.items()
  assert (config["patch_size"], config["hidden_act"], config["layer_norm_eps"]) == (8, "gelu_pytorch_tanh", 1e-6)
  assert len(config["id2label"]) == 7


def test_weights_of_another_library_become_published_ones(here):
  run("--to=timm", "--output=timm")
  run("--to=npz", "--output=again.npz", "--config.model.scan=True", weights="timm/model.safetensors")
  assert_same(pretrained.load_params(str(here / "again.npz")), pretrained.load_params(str(here / "params.npz")))


def test_at_another_size_the_positions_are_resized(here):
  run("--to=npz", "--output=larger.npz", "--image_size=64x64")
  assert pretrained.load_params(str(here / "larger.npz"))["pos_embedding"].shape == (1, 64, 16)


ALONE = """
import importlib.util, runpy, sys
assert importlib.util.find_spec("core") is None
for sys.argv in (["run.py"], ["run.py", "in.npy", "out.npy"]):
  runpy.run_path("run.py")
assert "flax" not in sys.modules
"""


@pytest.mark.parametrize("scan", [False, True])
def test_a_stablehlo_folder_runs_where_only_jax_is(scan, here):
  run("--to=stablehlo", "--output=out", f"--config.model.scan={scan}")
  image = np.random.default_rng(1).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)  # Another batch size.
  np.save(here / "out" / "in.npy", image)
  packages = [path for path in sys.path if path and not Path(path, "core", "errors.py").exists()]
  done = subprocess.run(
    [sys.executable, "-c", ALONE],
    cwd=here / "out",
    env=os.environ | {"PYTHONPATH": os.pathsep.join(packages), "PYTHONSAFEPATH": "1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "largest difference from the outputs in example.npz" in done.stdout
  assert float(done.stdout.split()[-1]) < 1e-4
  told = " ".join((here / "out" / "run.py").read_text().split())
  assert "Needs `pip install jax flatbuffers`, JAX from 0.8.3 on." in told
  assert f"Images are RGB, black being 0 and white 255. The file was written by JAX {jax.__version__}" in told
  expected = outputs(vit.Model(7, **TINY), pretrained.load_params(str(here / "params.npz")), image)
  np.testing.assert_allclose(np.load(here / "out" / "out.npy"), expected, atol=1e-4)


def test_any_family_becomes_stablehlo_for_any_platform():
  model = mixer.Model(7, patch_size=8, num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32)
  params = random_like(shapes(model))
  exported = export.stablehlo(model, params, (32, 32))
  assert exported.platforms == ("cpu", "cuda", "tpu")
  assert str(exported.in_avals[0].shape) == "(batch, 32, 32, 3)"
  image = np.ones((5, 32, 32, 3), np.float32)
  np.testing.assert_allclose(exported.call(image), outputs(model, params, image), atol=1e-4)


SIGLIP = dict(
  image=dict(TINY, pool_type="map"),
  text=dict(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=50),
  out_dim=(None, 16),
  bias_init=-10.0,
)
SIGLIP_CONFIG = """
from core.config import ConfigDict
def get_config(arg=None):
  pp = "decode|resize(32)|tokenize(max_len=6, model='x')|keep('image', 'labels')"
  return ConfigDict(dict(model_name="two_towers", model={model!r}, input=dict(pp=pp)))
"""


@pytest.fixture
def siglip(here):
  """A config and weights of two towers; gives the model and its parameters."""
  (here / "config.py").write_text(SIGLIP_CONFIG.format(model=SIGLIP))
  model = two_towers.Model(**SIGLIP)
  init = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 6), np.int32))
  params = random_like(init["params"])
  pretrained.save_params(here / "params.npz", params)
  return model, params


def test_two_towers_become_a_folder_for_transformers_and_published_weights_again(siglip, here):
  model, params = siglip
  assert run("--to=hf", "--output=out") == 0
  config = json.loads((here / "out" / "config.json").read_text())
  assert (config["architectures"], config["text_config"]["max_position_embeddings"]) == (["SiglipModel"], 6)
  with np.load(here / "out" / "example.npz") as example:
    zimg, ztxt, out = jax.jit(model.apply)({"params": params}, example["image"], example["text"])
    np.testing.assert_allclose(example["logits"], zimg @ ztxt.T * out["t"] + out["b"], atol=1e-4)
  run("--to=npz", "--output=again.npz", "--config.model.text.scan=True", weights="out")
  assert_same(pretrained.load_params(str(here / "again.npz")), params)


TEXTS = {
  "bert": dict(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=60, max_len=9),
  "text_transformer": dict(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=60, max_len=9),
}


@pytest.mark.parametrize("family", TEXTS)
def test_a_model_of_texts_alone_becomes_a_folder_with_its_tokenizer(family, here):
  classes = 16 if family == "text_transformer" else 0
  pp = "bert_tokenize(9,'digit_words')"
  entries = f"model_name={family!r}, model={TEXTS[family]!r}, num_classes={classes}, input=dict(pp={pp!r})"
  (here / "config.py").write_text(
    f"from core.config import ConfigDict\ndef get_config(arg=None): return ConfigDict(dict({entries}))\n"
  )
  module = {"bert": bert, "text_transformer": text_transformer}[family]
  model = module.Model(classes or None, **TEXTS[family])
  params = random_like(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 9), np.int32))["params"])
  pretrained.save_params(here / "params.npz", params)
  assert run("--to=hf", "--output=out") == 0
  names = {path.name for path in (here / "out").iterdir()}
  files = {"config.json", "model.safetensors", "example.npz", "tokenizer.json", "tokenizer_config.json"}
  assert names == files
  with np.load(here / "out" / "example.npz") as example:
    np.testing.assert_allclose(example["output"], model.apply({"params": params}, example["text"])[0], atol=1e-4)
  with pytest.raises(UserError, match="takes models of images alone"):
    run("--to=stablehlo", "--output=other")


def test_a_tokenizer_lies_beside_two_towers_or_a_line_says_why_not(siglip, here, capsys):
  run("--to=hf", "--output=out")
  assert "note: there are no tokenizer's files beside the model: tokenizer 'x': no such file" in capsys.readouterr().out
  texts = "--pp_txt=tokenize(6,model='digit_captions',eos='sticky',pad_value=1)"
  run("--to=hf", "--output=whole", texts)
  assert "no tokenizer's files" not in capsys.readouterr().out
  names = {path.name for path in (here / "whole").iterdir()}
  assert names - {path.name for path in (here / "out").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
  written = json.loads((here / "whole" / "preprocessor_config.json").read_text())
  assert written["image_processor_type"] == "SiglipImageProcessor"


@pytest.mark.parametrize(
  "arguments, line",
  [
    (["--to=timm"], "--to=timm: two_towers has no form there (it has: hf)"),
    (["--to=stablehlo"], "--to=stablehlo: takes models of images alone, and two_towers is of texts;"),
    (["--to=hf", "--text_length=x"], "flag --text_length must be a whole number above 0, got 'x'"),
    (["--to=hf", "--text_length=8"], "txt: params.npz:txt: for texts of 6 tokens, and those here have 8"),
    (["--to=hf", "--config.input.pp=resize(32)"], "--text_length=... is missing, and config.input.pp tokenizes to no"),
  ],
)
def test_what_cannot_be_of_two_towers_is_one_line(arguments, line, siglip):
  del siglip
  with pytest.raises(UserError) as e:
    run("--output=out", *arguments)
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_nothing_is_left_of_an_export_that_failed(here, monkeypatch):
  monkeypatch.setattr(export, "_write_example", lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    run("--to=timm", "--output=out")
  assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == ["config.py", "params.npz"]


@pytest.mark.parametrize(
  "arguments, line",
  [
    (["--to=timm"], "--output=... is missing"),
    (["--to=tim", "--output=out"], "flag --to must be one of npz, big_vision, timm, hf, stablehlo, got 'tim'"),
    (["--to=npz", "--output=out"], "must end in .npz"),
    (["--to=npz", "--output=params.npz"], "params.npz is there already; nothing is overwritten"),
    (["--to=timm", "--output=out", "--image_size=x"], "--image_size=x must be a number of pixels or HEIGHTxWIDTH"),
    (["--to=timm", "--output=out", "--config.input.pp=flip_lr"], "--image_size=... is missing, and config.input.pp"),
    (["--to=hf", "--output=out", "--config.model.pool_type=map"], "not the weights of this model"),
    (
      ["--to=timm", "--output=out", "--config.model_name=vitt"],
      "model_name: there is no 'vitt' (did you mean 'vit'?)",
    ),
  ],
)
def test_what_cannot_be_is_one_line(arguments, line, here):
  with pytest.raises(UserError) as e:
    run(*arguments)
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_a_family_without_mapping_is_one_line(tmp_path):
  with pytest.raises(UserError, match="weights of other libraries are known for"):
    export.WRITERS["timm"](tmp_path / "out", "bit", None, {}, None)


def test_parameters_beyond_the_format_are_one_line(tmp_path):
  huge = {"a": np.broadcast_to(np.float32(0), (2**29,))}
  with pytest.raises(UserError, match=r"the parameters take 2.0 GiB, and the format holds less than 2"):
    export.WRITERS["stablehlo"](tmp_path / "out", "vit", None, huge, None)
