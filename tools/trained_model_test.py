"""Weights that are evaluated are those of the file, all of them, whatever their config once left out; or one line."""

import jax
import numpy as np
import pytest

from core import trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.recipe.parse import parse
from core.tasks.classification import Classification
from core.testing.batch_norm_resnet import BatchNormResNet
from core.training import cli, state_init
from projects.clippo.train import TASK as CLIPPO
from projects.distill.train import TASK as DISTILL
from projects.siglip.train import TASK as SIGLIP
from tools import trained_model

TINY = dict(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4, pool_type="map")
LEFT_OUT = dict(dont_load=["MAPHead_0/.*", "head/.*"])
TRAINING = dict(total_steps=1, lr=0.1, optax_name="scale_by_adam")
BATCH_SIZE = 128
IMAGE = np.zeros((BATCH_SIZE, 8, 8, 3), np.float32)
LABELS = np.zeros((BATCH_SIZE, 5), np.float32)
TEXT = np.zeros((BATCH_SIZE, 6), np.int32)
DIGITS = dict(data=dict(source="digits", split="train"))

CASES = {
  "a student and its teacher": (
    DISTILL,
    dict(
      teachers=["prof"],
      num_classes=5,
      student_name="vit",
      student=TINY,
      student_load=LEFT_OUT,
      prof_name="vit",
      prof=TINY,
      prof_init="elsewhere.npz",
    ),
    {"image": IMAGE, "labels": LABELS},
  ),
  "two towers": (
    SIGLIP,
    dict(
      loss="softmax",
      model_name="two_towers",
      model=dict(image=TINY, text=dict(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=9), out_dim=16),
      model_load=dict(img_load_kw=LEFT_OUT, txt_load_kw=dict(dont_load=["head/.*"])),
    ),
    {"image": IMAGE, "labels": TEXT},
  ),
  "one tower and a classifier beside it": (
    CLIPPO,
    dict(
      loss="softmax",
      model_name="one_tower",
      model=dict(image=TINY, out_dim=16),
      model_load=dict(img_load_kw=LEFT_OUT),
      input=dict(data=dict(pairs=1, labelled=1), batch_size=BATCH_SIZE, pairs=DIGITS, labelled=DIGITS),
      co_training=dict(labelled="labelled", num_classes=5),
    ),
    {"image": IMAGE, "labels": IMAGE, "label": np.zeros(BATCH_SIZE, np.int32)},
  ),
}


@pytest.fixture(params=CASES)
def placement(request):
  """Where a tiny model lives whose config leaves its head out of the weights that it starts from."""
  choice, config, batch = CASES[request.param]
  data = dict(input=DIGITS | dict(batch_size=BATCH_SIZE))
  task, recipe = cli.read_recipe(choice, TRAINING | data | config)
  return state_init.place(task(recipe), recipe, batch)


def trained(placement):
  """Variables that are like nothing fresh."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), dict(placement.shapes.variables))


def test_all_of_a_file_is_loaded(placement, tmp_path):
  variables = trained(placement)
  pretrained.save_variables(tmp_path / "params.npz", variables)
  found = trained_model.load_whole(str(tmp_path / "params.npz"), placement)
  assert jax.tree.structure(found) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_what_a_file_lacks_is_named(placement, tmp_path):
  named = dict(trees.flatten_with_names(trained(placement)["params"]))
  gone = next(name for name in named if "MAPHead_0/MlpBlock_0" in name)
  named = {name: array for name, array in named.items() if name != gone and not name.startswith("head_cls")}
  pretrained.save_params(tmp_path / "params.npz", trees.from_names(named))
  with pytest.raises(UserError, match="MAPHead_0/MlpBlock_0") as error:
    trained_model.load_whole(str(tmp_path / "params.npz"), placement)
  assert "params.npz" in str(error.value)
  assert "\n" not in str(error.value)


def test_a_file_of_the_towers_alone_has_no_classifier(tmp_path):
  choice, config, batch = CASES["one tower and a classifier beside it"]
  task, recipe = cli.read_recipe(choice, TRAINING | config)
  placement = state_init.place(task(recipe), recipe, batch)
  params = trained(placement)["params"]
  pretrained.save_params(tmp_path / "params.npz", {name: params[name] for name in params if name != "head_cls"})
  with pytest.raises(UserError, match=r"not the weights of this model: it lacks head_cls/bias, head_cls/kernel$"):
    trained_model.load_whole(str(tmp_path / "params.npz"), placement)


class Normalized(Classification):
  """A model with batch statistics, whose own loading finds nothing in a file."""

  def __init__(self, recipe):
    super().__init__(recipe)
    self._model = BatchNormResNet(recipe.num_classes)
    self.load = dict


def test_batch_statistics_are_those_of_the_file(tmp_path):
  config = TRAINING | dict(input=DIGITS | dict(batch_size=BATCH_SIZE), model_name="vit", model=TINY, num_classes=5)
  config |= dict(loss="softmax_xent")
  recipe = parse(Normalized.Recipe, config)
  placement = state_init.place(Normalized(recipe), recipe, {"image": IMAGE, "labels": LABELS})
  variables = trained(placement)
  assert variables["batch_stats"]
  pretrained.save_variables(tmp_path / "params.npz", variables)
  found = trained_model.load_whole(str(tmp_path / "params.npz"), placement)
  jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_weights_are_called_by_their_url_without_what_is_secret():
  """The name stands in tables, in evaluate.json and in the names of folders."""
  (found,) = trained_model.from_files("https://user:hunter2@host/w.npz?sig=hunter2", None)
  assert found.name == "https://***@host/w.npz?sig=***"
