"""Batch statistics: updated in training, used in evaluation, loaded with the weights, and fixed where a model is."""

import dataclasses
import types
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np
import pytest

from core.checkpoint import pretrained
from core.errors import UserError
from core.models import registry
from core.models import towers as tower_modules
from core.recipe import tasks as recipes
from core.recipe.models import towers
from core.recipe.models.load import Load
from core.recipe.models.options import ModelOptions
from core.recipe.parse import parse
from core.tasks import variables as variables_lib
from core.tasks.classification import Classification
from core.tasks.contrastive import Contrastive
from core.tasks.distillation import Distillation

MOMENTUM = 0.75
COMMON = dict(
  total_steps=2, optax_name="scale_by_adam", lr=1e-3, input=dict(data=dict(name="digits", split="train"), batch_size=4)
)
CLASSIFIER = COMMON | dict(model_name="normalized", num_classes=5, loss="softmax_xent")
CONTRASTIVE = COMMON | dict(loss="softmax")
TAUGHT = COMMON | dict(
  num_classes=5, student_name="normalized", teachers=["prof"], prof_name="normalized", prof_init=None
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
  """The options of a model with one normalization."""

  TITLE: ClassVar[str] = "the model normalized"

  head_zeroinit: bool = False
  dtype_mm: str = "float32"


class Normalized(nn.Module):
  """Normalizes the mean colour of an image over the batch, and reads it out."""

  num_classes: int

  @nn.compact
  def __call__(self, image, *, train=False):
    x = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, name="norm")(image.mean(axis=(1, 2)))
    x = nn.Dense(self.num_classes, name="head")(x)
    return x, {"pre_logits": x}


def _load(init, file, options=None, dont_load=()):
  del init, options, dont_load
  return pretrained.load_params(file)


@pytest.fixture(autouse=True)
def normalized(monkeypatch):
  """A family of models that no config of ours has."""
  module = types.SimpleNamespace(Options=Options, make=lambda classes, options: Normalized(classes), load=_load)
  monkeypatch.setitem(registry.MODELS, "normalized", module)
  monkeypatch.setitem(recipes.IMAGE_MODELS, "normalized", Options)
  monkeypatch.setitem(recipes.LOADS, "normalized", Load)


def batch(size=4):
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (size, 4, 4, 3)).astype(np.float32)
  return {"image": image, "labels": np.eye(5, dtype=np.float32)[:size]}


def moved(stats, image, times=1):
  """Running statistics after so many steps on the same images, by NumPy."""
  colours = np.asarray(image).mean(axis=(1, 2))
  for _ in range(times):
    stats = {
      "mean": MOMENTUM * np.asarray(stats["mean"]) + (1 - MOMENTUM) * colours.mean(axis=0),
      "var": MOMENTUM * np.asarray(stats["var"]) + (1 - MOMENTUM) * colours.var(axis=0),
    }
  return stats


def assert_close(found, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), dict(found), dict(want))


def init(task, of=None):
  return jax.jit(task.init)(jax.random.key(0), batch() if of is None else of)


def classifier(**kw):
  return Classification(parse(Classification.Recipe, CLASSIFIER | kw))


def test_a_classifier_updates_its_statistics_in_training_and_uses_them_in_evaluation():
  task = classifier()
  variables = init(task)
  assert variables.keys() == {"params", "batch_stats"}
  loss, metrics, updated = jax.jit(task.loss)(variables, batch(), jax.random.key(1))
  assert (loss.shape, metrics) == ((), {})
  assert_close(updated["batch_stats"]["norm"], moved(variables["batch_stats"]["norm"], batch()["image"]))
  before, _ = task.predict["predict"](variables, batch())
  after, _ = task.predict["predict"]({**variables, **updated}, batch())
  one, _ = task.predict["predict"]({**variables, **updated}, {"image": batch()["image"][:1]})
  assert np.abs(before - after).max() > 0.01
  np.testing.assert_allclose(one, after[:1], rtol=1e-5, atol=1e-6)  # It does not depend on who else is in the batch.


def test_a_model_of_parameters_alone_sees_nothing_of_it():
  tiny = dict(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=(4, 4))
  task = classifier(model_name="vit", model=tiny)
  variables = init(task)
  assert variables.keys() == {"params"}
  assert len(jax.eval_shape(task.loss, variables, batch(), jax.random.key(1))) == 2


def test_a_student_updates_its_statistics_and_those_of_its_teacher_stay():
  task = Distillation(parse(Distillation.Recipe, TAUGHT))
  variables = init(task)
  assert jax.tree.map(np.shape, variables["batch_stats"]["student"]) == {"norm": {"mean": (3,), "var": (3,)}}
  _, _, updated = jax.jit(task.loss)(variables, batch(), jax.random.key(1))
  assert updated["batch_stats"].keys() == {"student"}  # What is left out stays as it is, to the bit.
  stats = updated["batch_stats"]
  assert_close(stats["student"]["norm"], moved(variables["batch_stats"]["student"]["norm"], batch()["image"]))
  logits, _ = task.predict["prof"](variables, batch())
  alone, _ = classifier().predict["predict"](variables_lib.part(variables, "prof"), batch())
  np.testing.assert_array_equal(logits, alone)


def test_a_teacher_with_statistics_teaches_a_student_without():
  tiny = dict(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=(4, 4))
  task = Distillation(parse(Distillation.Recipe, TAUGHT | dict(student_name="vit", student=tiny)))
  variables = init(task)
  assert variables["batch_stats"].keys() == {"prof"}
  assert len(jax.eval_shape(task.loss, variables, batch(), jax.random.key(1))) == 2


@pytest.fixture
def as_tower(monkeypatch):
  """The family as a tower."""
  module_of = tower_modules.of
  own = registry.MODELS["normalized"]
  monkeypatch.setattr(tower_modules, "of", lambda options: own if isinstance(options, Options) else module_of(options))
  monkeypatch.setitem(towers.IMAGE_MODELS, "normalized", Options)


def contrastive(model_name, **model):
  model = dict(image_model="normalized", image={}, out_dim=5) | model
  return Contrastive(parse(Contrastive.Recipe, CONTRASTIVE | dict(model_name=model_name, model=model)))


def test_two_towers_update_the_statistics_of_each(as_tower):
  task = contrastive(
    "two_towers", text_model="text_transformer", text=dict(width=8, depth=1, num_heads=1, vocab_size=9)
  )
  both = {"image": batch()["image"], "labels": np.arange(8, dtype=np.int32).reshape(4, 2)}
  variables = init(task, both)
  _, _, updated = jax.jit(task.loss)(variables, both, jax.random.key(1))
  assert_close(updated["batch_stats"]["img"]["norm"], moved(variables["batch_stats"]["img"]["norm"], both["image"]))


def test_one_tower_updates_its_statistics_by_images_and_then_by_texts(as_tower):
  task = contrastive("one_tower")
  both = {"image": batch()["image"], "labels": batch()["image"] * 2 + 1}
  variables = init(task, both)
  _, _, updated = jax.jit(task.loss)(variables, both, jax.random.key(1))
  after_images = moved(variables["batch_stats"]["img"]["norm"], both["image"])
  assert_close(updated["batch_stats"]["img"]["norm"], moved(after_images, both["labels"]))


def test_a_locked_tower_keeps_its_statistics(as_tower):
  model = dict(image_model="normalized", text=dict(width=8, depth=1, num_heads=1, vocab_size=9), out_dim=5)
  schedule = [("img/.*", None), (".*", {})]
  recipe = parse(Contrastive.Recipe, CONTRASTIVE | dict(model_name="two_towers", model=model, schedule=schedule))
  task, both = Contrastive(recipe), {"image": batch()["image"], "labels": np.ones((4, 2), np.int32)}
  variables = init(task, both)
  _, _, *updated = jax.jit(task.loss)(variables, both, jax.random.key(1))
  for collections in updated:
    jax.tree.map(np.testing.assert_array_equal, collections["batch_stats"], variables["batch_stats"])


def test_statistics_are_loaded_with_the_weights(monkeypatch):
  stats = {"norm": {"mean": np.full(3, 2.0, np.float32), "var": np.full(3, 3.0, np.float32)}}
  fresh = jax.device_get(init(classifier()))
  files = {"all.npz": {"params": fresh["params"], "batch_stats": stats}, "params.npz": {"params": fresh["params"]}}
  files["other.npz"] = {"params": fresh["params"], "batch_stats": {"norm": {"mean": np.ones(4), "var": np.ones(4)}}}
  files["few.npz"] = {"params": fresh["params"], "batch_stats": {"norm": {"mean": np.ones(3)}}}
  monkeypatch.setattr(pretrained, "load_params", lambda spec: files[spec]["params"])
  monkeypatch.setattr(pretrained, "load_variables", files.__getitem__, raising=False)
  load = lambda file, **kw: classifier(model_init=file, **kw).load(fresh)["batch_stats"]
  assert_close(load("all.npz")["norm"], stats["norm"])
  assert_close(load("params.npz")["norm"], fresh["batch_stats"]["norm"])
  part = load("all.npz", model_load=dict(dont_load=["norm/mean"]))["norm"]
  assert_close(part, {"mean": fresh["batch_stats"]["norm"]["mean"], "var": stats["norm"]["var"]})
  with pytest.raises(
    UserError,
    match=r"^config.model_init: other\.npz: not the variables of this model: norm/mean \(4,\) instead of \(3,\)",
  ):
    load("other.npz")
  with pytest.raises(
    UserError, match=r"^config.model_init: few\.npz: not the variables of this model: it lacks norm/var"
  ):
    load("few.npz")


def test_the_variables_of_several_models_are_joined_and_taken_apart():
  one, two = {"params": {"a": 1}, "cache": {"b": 2}}, {"params": {"a": 3}}
  joined = variables_lib.joined({"one": one, "two": two})
  assert joined == {"params": {"one": {"a": 1}, "two": {"a": 3}}, "cache": {"one": {"b": 2}}}
  assert [variables_lib.part(joined, name) for name in ("one", "two")] == [one, two]
