"""What the configs make of their arguments: towers that fit the published files, and what is locked."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from core import trees
from core.checkpoint import catalog
from core.errors import UserError
from core.optim import masks
from core.testing import configs
from projects.siglip.configs import generic, published, siglit
from projects.siglip.train import TASK

CONFIGS = Path(__file__).parent / "configs"
# NaFlex keeps the aspect of images, which is another model.
PUBLISHED = [name for name in catalog.names("two_towers") if name.startswith("SigLIP") and "NaFlex" not in name]


def load(name, *arguments):
  return configs.read(CONFIGS / f"{name}.py", *arguments)


def shapes(config, res, tokens):
  batch = {"image": jnp.zeros((1, res, res, 3)), "labels": jnp.zeros((1, tokens), jnp.int32)}
  params = jax.eval_shape(lambda rng: configs.task_of(TASK, config).init(rng, batch)["params"], jax.random.key(0))
  return {name: leaf.shape for name, leaf in trees.flatten_with_names(params)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_name_has_its_config(name):
  config = published.get_config(f"model={name}")
  assert config.model_init == name
  assert f"resize({name.split()[-1]})" in config.evals.zeroshot.pp_img
  assert ("gemma" in config.evals.zeroshot.pp_txt) == name.startswith("SigLIP2")
  configs.task_of(TASK, config)


def test_the_towers_of_a_published_model_have_the_shapes_of_its_file():
  found = shapes(load("published", "model=SigLIP So400m/14 224"), 224, 16)
  assert found["img/pos_embedding"] == (1, 256, 1152)
  assert found["txt/pos_embedding"] == (1, 16, 1152)
  assert found["txt/Embed_0/embedding"] == (32_000, 1152)
  assert found["txt/head/kernel"] == (1152, 1152)
  assert found["t"] == found["b"] == (1,)
  assert not any(name.startswith("img/head") for name in found)


def test_what_is_no_published_name_is_refused():
  with pytest.raises(UserError, match="must be a name like 'SigLIP B/16 224'"):
    load("published", "model=SigLIP B16")


def test_siglit_locks_all_of_the_image_tower_and_nothing_else():
  config = load("siglit", "runlocal")
  rules = [(regex, schedule is not None) for regex, schedule in config.schedule]
  trained = masks.make_mask({name: 0 for name in shapes(config, 32, 16)}, rules, where="")
  assert {name.partition("/")[0] for name, is_trained in trained.items() if is_trained} == {"txt", "t", "b"}


@pytest.mark.parametrize("config", [generic, siglit])
def test_captions_are_found_where_the_arguments_say(config):
  in_file = config.get_config("data=pairs.jsonl")
  assert in_file.input.data.to_dict() == dict(source="jsonl", path="pairs.jsonl")
  assert "inkey='text'" in in_file.input.pp
  nested = config.get_config("data=coco_captions,text=captions/text,several")
  assert "flatten|choice(inkey='captions/text',outkey='text')|tokenize(" in nested.input.pp
