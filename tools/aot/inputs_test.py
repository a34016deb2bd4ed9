"""Shapes of batches without the data: ImageNet and LAION are on no machine that runs tests."""

import jax
import numpy as np
import pytest

from core.errors import UserError
from tools import trained_model
from tools.aot import inputs

SHAPES = {
  "projects/vit/configs/i1k.py": {"image": ("float32", (4096, 224, 224, 3)), "labels": ("float32", (4096, 1000))},
  "projects/vit/configs/digits.py": {"image": ("float32", (64, 8, 8, 1)), "labels": ("float32", (64, 10))},
  # Their tokenizers would have to be fetched.
  "projects/siglip/configs/generic.py": {"image": ("float32", (32768, 224, 224, 3)), "labels": ("int32", (32768, 64))},
  "projects/lit/configs/generic.py": {"image": ("float32", (16384, 224, 224, 3)), "labels": ("int32", (16384, 16))},
}


def recipe_of(config, overrides=()):
  return trained_model.recipe_of(config, overrides)[-1]


@pytest.mark.parametrize("file", SHAPES)
def test_shapes_are_found_without_the_data(file, monkeypatch, tmp_path):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  found = inputs.batch_shapes(recipe_of(file))
  assert {key: (x.dtype.name, x.shape) for key, x in found.items()} == SHAPES[file]


def test_shapes_that_are_given_need_no_data():
  recipe = recipe_of("projects/siglip/configs/generic.py:data=nowhere.jsonl,batch_size=8")
  found = inputs.batch_shapes(recipe, "image:float32[32,32,3],labels:int32[16]")
  assert found == {
    "image": jax.ShapeDtypeStruct((8, 32, 32, 3), np.float32),
    "labels": jax.ShapeDtypeStruct((8, 16), np.int32),
  }


@pytest.mark.parametrize(
  "spec, overrides, words",
  [
    ("siglip/configs/generic.py:data=nowhere.jsonl", [], "give the shapes by --example"),
    ("siglip/configs/generic.py:data=webli", [], "give the shapes by --example"),
    ("vit/configs/i1k.py", [("input.pp", "decode|resize_small(256)|keep('image')")], "leaves 'image' of shape [None"),
  ],
)
def test_what_cannot_be_known_is_asked_for(spec, overrides, words):
  with pytest.raises(UserError) as error:
    inputs.batch_shapes(recipe_of(f"projects/{spec}", overrides))
  assert words in str(error.value)
  assert "\n" not in str(error.value)
