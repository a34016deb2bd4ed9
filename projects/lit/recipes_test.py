"""What the configs make of their arguments: towers that fit the published files, what is locked, where captions are."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from core import trees
from core.checkpoint import catalog
from core.errors import UserError
from core.optim import masks
from core.testing import configs
from projects.lit.configs import published
from projects.lit.train import TASK

CONFIGS = Path(__file__).parent / "configs"


def load(name, *arguments):
  return configs.read(CONFIGS / f"{name}.py", *arguments)


def shapes(config, res=32, tokens=16):
  batch = {"image": jnp.zeros((1, res, res, 3)), "labels": jnp.zeros((1, tokens), jnp.int32)}
  params = jax.eval_shape(lambda rng: configs.task_of(TASK, config).init(rng, batch)["params"], jax.random.key(0))
  return {name: leaf.shape for name, leaf in trees.flatten_with_names(params)}


def test_every_published_file_has_its_config():
  assert set(published.MODELS) == set(catalog.names("lit"))


def test_the_towers_of_a_published_model_have_the_shapes_of_its_file():
  found = shapes(load("published", "model=mixed_L16L"), 224)
  assert found["img/pos_embedding"] == (1, 196, 1024)
  assert found["txt/BertEncoder_0/embedder/embedders_token_ids/embedding"] == (30_522, 1024)
  assert found["txt/head/kernel"] == (1024, 1024)
  assert not any(name.startswith("img/head") for name in found)
  assert "img/head/kernel" in shapes(load("published", "model=mixed_B16B"), 224)


@pytest.mark.parametrize("name", ["coco", "generic", "digits"])
def test_the_image_tower_is_locked_and_all_else_is_not(name):
  config = load(name, *([] if name == "digits" else ["runlocal"]))
  assert trained(config, res=16 if name == "digits" else 32) == {"txt", "t"}


@pytest.mark.parametrize("name", ["coco", "generic"])
def test_a_head_on_the_locked_tower_is_trained(name):
  assert trained(load(name, "runlocal", "img_head")) == {"txt", "t", "img/head"}


def trained(config, res=32):
  rules = [(regex, schedule is not None) for regex, schedule in config.schedule]
  mask = masks.make_mask({name: 0 for name in shapes(config, res)}, rules, where="")
  parts = {name for name, is_trained in mask.items() if is_trained}
  return {"img/head" if name.startswith("img/head/") else name.partition("/")[0] for name in parts}


def test_weights_are_those_that_the_catalog_names():
  init = load("generic", "img=L/16", "txt=large").model_init
  assert catalog.locate("vit", init.image).startswith("gs://vit_models/augreg/L_16-i21k")
  assert catalog.locate("bert", init.text) != init.text


def test_captions_are_found_where_the_arguments_say():
  in_file = load("generic", "data=cc12m.jsonl")
  assert in_file.input.data.to_dict() == dict(source="jsonl", path="cc12m.jsonl")
  assert "inkey='text'" in in_file.input.pp
  nested = load("generic", "data=coco_captions", "text=captions/text", "several")
  assert "flatten|choice(inkey='captions/text',outkey='text')|bert_tokenize(" in nested.input.pp


def test_an_unknown_tower_is_refused():
  with pytest.raises(UserError, match="img='X' is unknown"):
    load("coco", "img=X/16")
