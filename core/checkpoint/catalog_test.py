import json

import pytest

from core import data_files
from core.checkpoint import catalog
from core.errors import UserError

CATALOG = json.loads(data_files.find("core/checkpoint/catalog.json").read_text())
KNOWN = [(family, name, location) for family, entries in CATALOG.items() for name, location in entries.items()]


def refused(family, name):
  with pytest.raises(UserError) as e:
    catalog.locate(family, name)
  assert "\n" not in str(e.value)
  return str(e.value)


def test_every_name_of_every_family_resolves():
  assert len(KNOWN) > 100
  for family, name, location in KNOWN:
    assert catalog.locate(family, name) == location
    assert name in catalog.names(family)
    assert location.startswith("gs://")


def test_the_image_tower_of_a_two_tower_file_is_a_vit():
  for name in CATALOG["two_towers"]:
    assert catalog.locate("vit", name) == catalog.locate("two_towers", f"{name}:img")
    assert catalog.locate("text_transformer", name) == catalog.locate("two_towers", f"{name}:txt")
  assert catalog.locate("lit", "mixed_L16L:txt") == "gs://vit_models/lit/LiT-L16L.npz:txt"
  assert catalog.locate("vit", "mixed_L16L:img") == "gs://vit_models/lit/LiT-L16L.npz:img"
  assert catalog.locate("vit", "SigLIP L/16 256:txt") == catalog.locate("two_towers", "SigLIP L/16 256:txt")


def test_families_know_what_else_loads_into_them():
  assert catalog.locate("two_towers", "coco_B16B") == "gs://vit_models/lit/big_vision/coco_B16B/checkpoint.npz"
  assert catalog.locate("one_tower", "100c4") == "gs://big_vision/clippo/clippo_b16_100c4.npz"
  assert catalog.locate("vit", "FlexiViT-L i1k") == "gs://big_vision/flexivit/flexivit_l_i1k.npz"
  assert catalog.locate("resnet", "BiT-M R152x2 pet rc128") == "gs://bit_models/distill/R152x2_T_pet128.npz"


@pytest.mark.parametrize("data", "SML")
@pytest.mark.parametrize("size", ["R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4"])
@pytest.mark.parametrize("end", ["", "-ILSVRC2012", "-run0-caltech101", "-run2-diabetic_retinopathy"])
def test_bit_names_follow_their_pattern(data, size, end):
  name = f"BiT-{data}-{size}{end}"
  assert catalog.locate("resnet", name) == f"gs://bit_models/{name}.npz"
  depth, width = size[1:].split("x")
  assert catalog.bit_name(f"{data}{end}", int(depth), int(width)) == name


@pytest.mark.parametrize("name", ["BiT-M-R50x1", "FunMatch-224px-i1k82.8", "weights.npz", "Mx"])
def test_a_name_that_tells_its_size_stays(name):
  assert catalog.bit_name(name, 101, 3) == name


@pytest.mark.parametrize(
  "family, name, words",
  [
    ("vit", "howto-i21k-b/16", "a published name of vit (did you mean 'howto-i21k-B/16' or "),
    ("vit", "siglip b/16 224", "(did you mean 'SigLIP B/16 224' or "),
    ("mixer", "B-i1k/61", "(did you mean 'B-i1k/16' or "),
    ("mixer", "zzz", "(known: B-i1k/16, L-i1k/16, B-i21k/16 and 1 more of core/checkpoint/catalog.json)"),
    ("mixer", "howto-i21k-B/16", "('howto-i21k-B/16' is one of vit)"),
    ("vit", "mixed_L16L", "('mixed_L16L' is one of lit; 'mixed_L16L:img' is its image tower)"),
    ("resnet", "M", "(the size of the model belongs to the name: 'BiT-M-R50x1')"),
    ("resnet", "M-ILSVRC2012", "(the size of the model belongs to the name: 'BiT-M-R50x1-ILSVRC2012')"),
    ("resnet", "BiT-M-R50x2", "(did you mean 'BiT-M-R50x"),
  ],
)
def test_a_mistyped_name_gets_the_nearest(family, name, words):
  line = refused(family, name)
  assert line.startswith(f"weights {name!r}: neither a file nor a published name of {family}")
  assert words in line


@pytest.mark.parametrize(
  "place",
  [
    "runs/howto-i21k-B/16/params.npz",
    "params.npz:img",
    f"params.npz#sha256={'0' * 64}",
    "https://host/vit.npz?download=1",
    "gs://bucket/x.npz:img",
    "model.safetensors",
    "x.pt:state_dict",
    "x.pth#sha256=00:state_dict",
    "../pytorch_model.bin",
  ],
)
@pytest.mark.parametrize("family", ["vit", "resnet", "nfnet"])
def test_a_path_or_url_comes_back_as_it_is(family, place):
  assert catalog.locate(family, place) == place


def test_what_is_there_is_a_path_whatever_its_name(tmp_path, monkeypatch):
  (tmp_path / "howto-i21k-C").mkdir()
  (tmp_path / "howto-i21k-C" / "16").touch()
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
  assert catalog.locate("vit", "howto-i21k-C/16") == "howto-i21k-C/16"


def test_a_family_without_published_weights_has_no_names():
  assert catalog.names("nfnet") == []
  assert catalog.locate("nfnet", "anything") == "anything"
