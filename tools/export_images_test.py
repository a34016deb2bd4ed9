"""What timm and transformers are told of a pp string, by what they computed with it (witness/generate_export.py)."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from core import data_files
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import two_towers, vit
from core.pp import builder
from core.testing.params import random_like, shapes
from tools import export, export_images

WEIGHTS = data_files.find("core/models/witness") / "vit_foreign.npz"
WITNESS = data_files.find("tools/witness") / "export.npz"
MODEL = dict(patch_size=8, width=24, depth=2, mlp_dim=48, num_heads=2, pool_type="tok", gelu="exact")
# The pp string, and how far logits of about 3 may be apart: PIL rounds to whole grey levels, between rows and columns
# too, where ours are cut once.
CASES = {
  "squashed": ("decode|resize(32,'bicubic',antialias=True)|value_range(-1,1)", 0.05),
  "cropped": ("decode|resize_small(40,'bilinear',antialias=True)|central_crop(32)|vgg_value_range", 0.03),
  "both": ("decode|resize((40,40),'lanczos3',antialias=True)|central_crop(32)|value_range(0,1)", 0.02),
  "area": ("decode|resize_small(36)|central_crop(32)|value_range(-1,1)", 0.5),  # A note says that they differ.
  "levels": ("decode|resize(32,'nearest')", 1e-5),
  "not_resized": ("value_range(-1,1)", 0.05),
}


# Two towers, by transformers' own processor from an image's file and texts.
TOWERS = dict(
  image=dict(patch_size=8, width=16, depth=2, mlp_dim=32, num_heads=2, pool_type="map"),
  text=dict(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=74),
  out_dim=(None, 16),
  bias_init=-10.0,
)
PP_IMG, PP_TXT = CASES["squashed"][0], "tokenize(16,model='digit_captions',eos='sticky',pad_value=1)"


def towers():
  """The model and parameters none of which is at rest."""
  model = two_towers.Model(**TOWERS)
  inputs = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 16), np.int32)
  return model, random_like(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])


def write_towers(folder):
  """Exports the two towers, for witness/generate_export.py."""
  config = f'model_name="two_towers", model={TOWERS!r}, input=dict(pp={f"{PP_IMG}|{PP_TXT}"!r})'
  write_config(folder / "towers.py", config)
  pretrained.save_params(folder / "towers.npz", towers()[1])
  export.main(
    [f"--config={folder}/towers.py", f"--weights={folder}/towers.npz", "--to=hf", f"--output={folder}/towers"]
  )


def write_config(path, entries):
  path.write_text(f"from core.config import ConfigDict\ndef get_config(arg=None): return ConfigDict(dict({entries}))\n")


def state_dict():
  with np.load(WEIGHTS) as file:
    return {
      k.removeprefix("vit/state_dict/"): file[k].astype(np.float32) for k in file if k.startswith("vit/state_dict/")
    }


def write_cases(folder):
  """Exports each case for both libraries, for witness/generate_export.py."""
  safetensors.numpy.save_file(state_dict(), folder / "vit.safetensors")
  for case, (pp, _) in CASES.items():
    config = f'model_name="vit", model={MODEL!r}, num_classes=7, input=dict(pp={pp!r})'
    path = folder / f"{case}.py"
    write_config(path, config)
    for library in ("timm", "hf"):
      output = f"--output={folder}/{case}/{library}"
      export.main(
        [f"--config={path}", f"--weights={folder}/vit.safetensors", f"--to={library}", output, "--image_size=32"]
      )


@pytest.fixture(scope="module")
def witness():
  with np.load(WITNESS) as file:
    return dict(file)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
  safetensors.numpy.save_file(state_dict(), path)
  model = vit.Model(7, **MODEL)
  params = vit.load(shapes(model), str(path), model.options)
  run = jax.jit(lambda image: model.apply({"params": params}, image[None])[0][0])
  return lambda image: run(np.asarray(image, np.float32))


@pytest.mark.parametrize("case", CASES)
def test_the_libraries_compute_the_same_logits_from_the_image_s_file(case, witness, model):
  pp, tolerance = CASES[case]
  made = export_images.read(pp, "config.input.pp", (32, 32))
  settings = {"timm": export_images.timm(made, "--to=timm"), "hf": export_images.transformers(made, "vit")}
  assert {library: json.loads(str(witness[f"{case}/{library}/settings"])) for library in settings} == settings
  preprocess = builder.get_preprocess_fn(pp if "decode" in pp else f"decode|resize(32,antialias=True)|{pp}")
  for i in range(1 if case == "area" else 2):
    ours = model(preprocess({"image": witness[f"raw/{i}"].tobytes()})["image"])
    for library in settings:
      np.testing.assert_allclose(witness[f"{case}/{library}/logits"][i], ours, atol=tolerance, err_msg=library)


def test_transformers_computes_the_same_logits_from_an_image_s_file_and_texts(witness):
  model, params = towers()
  image = builder.get_preprocess_fn(PP_IMG)({"image": witness["raw/0"].tobytes()})["image"]
  texts = np.array([str(text).encode() for text in witness["towers/texts"]], object)
  tokens = builder.get_batched_fn(PP_TXT)({"text": texts})["labels"]
  np.testing.assert_array_equal(tokens, witness["towers/tokens"])
  zimg, ztxt, out = jax.jit(model.apply)({"params": params}, np.asarray(image)[None], tokens)
  np.testing.assert_allclose(witness["towers/logits"], zimg @ ztxt.T * out["t"] + out["b"], atol=1e-3)


@pytest.mark.parametrize("case", ["squashed", "cropped", "both"])
def test_without_antialias_an_image_that_shrinks_gives_other_logits_and_a_note_says_so(case, witness, model):
  pp, tolerance = CASES[case]
  other = pp.replace(",antialias=True", "")
  ours = model(builder.get_preprocess_fn(other)({"image": witness["raw/0"].tobytes()})["image"])
  assert np.abs(ours - witness[f"{case}/timm/logits"][0]).max() > 2 * tolerance
  (note,) = export_images.read(other, "config.input.pp", (32, 32)).notes
  assert note == (
    "config.input.pp resizes without antialias, the libraries with it; images that shrink come out smoother there"
  )
  assert export_images.read(pp, "config.input.pp", (32, 32)).notes == ()


@pytest.mark.parametrize(
  "pp, size",
  [
    ("decode|resize_small(256)|central_crop(224)", (224, 224)),
    ("decode|resize_small(256)|inception_crop(224, area_min=10)|flip_lr", (224, 224)),
    ("decode|resize_small(448)|random_crop(crop_size=384)", (384, 384)),
    ("decode|resize_small(256)|random_crop((224,192))", (224, 192)),
    ("decode|resize_small(256)|resize((160,320))", (160, 320)),
    ("decode|resize_small(256)|central_crop()", (256, 256)),
    ("decode|resize((300,200))|central_crop()", (200, 200)),
    ("decode|resize((300,200))|resize_small(100)", (150, 100)),
    ("decode|resize(28)|pad(2)", (32, 32)),
    ("decode|pad(4)|random_crop(32)", (32, 32)),
    ("decode_jpeg_and_inception_crop(size=64)|copy('image','view')|resize(32,key='view')", (64, 64)),
    ("decode|resize(size=64,outkey='view')|resize(16)", (16, 16)),
    ("decode|resize_small(256)", None),
    ("decode|resize(64)|inception_crop", None),
    ("value_range(-1,1)", None),
    ("a_project_s_own(3)|resize(8)", (8, 8)),
    ("", None),
  ],
)
def test_the_size_is_that_of_the_images_that_the_model_gets(pp, size):
  assert export_images.size_of(pp, "config.input.pp") == size


@pytest.mark.parametrize(
  "pp, length",
  [
    ("tokenize(6, model='no_such_file')", 6),
    ("tokenize(max_len=6, model='x')|keep('labels')", 6),
    ("tokenize(model='x', eos='sticky', max_len=7)", 7),
    ("bert_tokenize(16, vocab_path='x')", 16),
    ("bert_tokenize(vocab_path='x', max_len=8)", 8),
    ("bert_tokenize('x', 9)", 9),
    ("resize(32)", None),
  ],
)
def test_the_length_of_texts_is_the_tokenizer_s(pp, length):
  assert export_images.text_length_of(pp, "config.input.pp") == length


def of(pp, size=(224, 224)):
  return export_images.read(pp, "config.input.pp", size)


def test_at_another_size_what_is_cut_off_stays_in_proportion():
  made = of("decode|resize_small(256)|central_crop(224)", (448, 448))
  assert (made.shorter, made.size) == (512, (448, 448))
  assert export_images.timm(made, "x")["crop_pct"] == 0.875
  made = of("decode|resize((40,60))|central_crop((20,30))", (10, 15))
  assert (made.resized, made.size) == ((20, 30), (10, 15))


@pytest.mark.parametrize("base", range(225, 300))
def test_timm_s_rounding_down_gives_the_size_back(base):
  share = export_images.timm(of(f"decode|resize_small({base})|central_crop(224)"), "x")["crop_pct"]
  assert int(np.floor(224 / share)) == base


def test_values_are_those_of_all_ops_together():
  made = of("resize(224)|value_range(0,1)|vgg_value_range((0.5,0.4,0.3),(0.1,0.2,0.3))")
  np.testing.assert_allclose(made.mean, (0.5, 0.4, 0.3))
  np.testing.assert_allclose(made.std, (0.1, 0.2, 0.3))
  clip = of("resize(224)|clip_value_range")
  np.testing.assert_allclose(clip.mean, (0.48145466, 0.4578275, 0.40821073))
  np.testing.assert_allclose(clip.std, (0.26862954, 0.26130258, 0.27577711))
  by_channel = of("resize(224)|value_range(0,1,(0,51,102),255)")
  np.testing.assert_allclose(by_channel.mean, (0, 0.2, 0.4), atol=1e-12)
  np.testing.assert_allclose(by_channel.std, (1, 0.8, 0.6))
  assert of("resize(224)|value_range(-1,1)").value_range == (-1, 1)
  assert of("resize(224)").value_range == (0, 255)
  assert made.value_range is None


def test_what_is_drawn_at_random_is_left_out_and_said():
  made = of("decode_jpeg_and_inception_crop(224,antialias=True)|flip_lr|randaug(2,15)|value_range(-1,1)")
  assert (made.resized, made.shorter, made.size) == ((224, 224), None, (224, 224))
  assert made.notes == (
    "config.input.pp draws at random (decode_jpeg_and_inception_crop, flip_lr, randaug); the one written takes the "
    "whole image, or its middle",
  )


@pytest.mark.parametrize(
  "pp, line",
  [
    ("decode|central_crop(224)", "central_crop there has no like in other libraries; --pp_img=... states another"),
    ("decode|resize_long(224)", "resize_long there has no like in other libraries"),
    ("decode(1)|resize(224)", "decode there has no like"),
    ("decode|pad(4)|resize(224)", "pad there has no like"),
    ("decode|resize(256)|resize_small(300)", "resize_small there has no like"),
    ("decode|resize(256)|central_crop(224)|resize(32)", "resize there has no like"),
    ("decode|resize_small(256)", "leaves images of any shape; --pp_img=... states another preprocessing"),
    ("decode|resize(224,'gaussian')", "resizes by 'gaussian', which no other library does"),
    (
      "decode|resize(224)|value_range(-1,1,0,128,clip_values=True)",
      "value_range there maps several grey levels to one",
    ),
    ("decode|resize(224)|value_range(1,1)", "value_range there maps several grey levels to one"),
    ("decode|resize(224)|vgg_value_range((1.0,2.0),(1.0,2.0))", "vgg_value_range there is not of 3 channels"),
    ("decode|resize(224)|value_range(0,1,(0,1),255)", "value_range there is not of 3 channels"),
    ("render_unifont(image_size=224)", "render_unifont there has no like"),
  ],
)
def test_what_the_libraries_have_no_like_for_is_one_line(pp, line):
  with pytest.raises(UserError) as e:
    of(pp)
  assert str(e.value).startswith("config.input.pp: ")
  assert line in str(e.value)


@pytest.mark.parametrize(
  "pp, line",
  [
    ("decode|resize_small(256)|central_crop((224,192))", "--to=timm: timm cuts no box of 224 x 192 out of an image"),
    ("decode|resize((256,224))|central_crop((224,192))", "--to=timm: timm cuts the same share off both sides"),
  ],
)
def test_what_timm_alone_has_no_like_for_is_one_line_and_transformers_has_it(pp, line):
  made = of(pp, (224, 192))
  with pytest.raises(UserError, match=line):
    export_images.timm(made, "--to=timm")
  settings = export_images.transformers(made, "vit")
  assert settings["crop_size"] == {"height": 224, "width": 192}
  assert settings["size"] in ({"shortest_edge": 256}, {"height": 256, "width": 224})


if __name__ == "__main__":
  write_cases(Path(sys.argv[1]))
  write_towers(Path(sys.argv[1]))
