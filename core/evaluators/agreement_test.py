"""Agreement, divergence and CKA are NumPy's and SciPy's in double precision, whatever the batch size leaves over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from core import sharding
from core.errors import UserError
from core.evaluators import registry
from core.recipe.evaluators import Evaluator
from core.recipe.parse import parse
from core.testing import linear_classifier

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.

RNG = np.random.default_rng(1)
MIX = RNG.normal(size=(64, 64)).astype(np.float32) / 8
SHIFT = RNG.normal(size=(64, 10)).astype(np.float32) * 2


def teacher(variables, batch):
  """A model whose weights and features are others than the student's, and these eight to a row."""
  flat = linear_classifier.predict(variables, batch)[1]["pre_logits"]
  features = jax.nn.relu(flat @ MIX)
  return flat @ (variables["params"]["w"] + SHIFT), {
    "pre_logits": features,
    "rows": features.reshape(-1, 8, 8),
    "even": flat * 0,
  }


PREDICT = {"student": linear_classifier.predict, "teacher": teacher}


def evaluator(predict=PREDICT, **options):
  config = dict(data=dict(name="digits", split="test"), pp_fn=linear_classifier.IMAGES_AND_LABELS, batch_size=64)
  where = sharding.batch_sharding(sharding.make_mesh())
  options = parse(Evaluator, config | dict(type="agreement") | options, "config.evals.test")
  return registry.make("test", options, predict=predict, sharding=where)


def representations():
  images = linear_classifier.images("test")
  return images, np.maximum(images @ MIX.astype(np.float64), 0)


def logits():
  weights = linear_classifier.PARAMS["w"].astype(np.float64)
  return linear_classifier.images("test") @ weights, linear_classifier.images("test") @ (weights + SHIFT)


def cka(x, y):
  """By its definition with the kernels of all pairs of examples (Kornblith et al. 2019, eq. 2 and 3)."""
  centre = np.eye(len(x)) - 1 / len(x)
  hsic = lambda k, other: np.trace(k @ centre @ other @ centre)
  of_x, of_y = x @ x.T, y @ y.T
  return hsic(of_x, of_y) / np.sqrt(hsic(of_x, of_x) * hsic(of_y, of_y))


@pytest.mark.parametrize("batch_size", [8, 104, 512])
def test_all_are_those_of_the_whole_dataset(batch_size):
  found = evaluator(batch_size=batch_size).run(linear_classifier.variables())
  student, of_teacher = logits()
  best = of_teacher.argmax(axis=1)
  assert found["agree@1"] == np.mean(student.argmax(axis=1) == best)
  assert found["agree@5"] == np.mean([c in row for c, row in zip(best, np.argsort(student, axis=1)[:, -5:])])
  assert found["agree@1"] < found["agree@5"] < 1
  kl = entropy(softmax(of_teacher, axis=1), softmax(student, axis=1), axis=1).mean()
  np.testing.assert_allclose(found["kl"], kl, rtol=1e-4)
  assert 0.1 < cka(*representations()) < 0.99
  np.testing.assert_allclose(found["cka"], cka(*representations()), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [104, 512])
def test_a_distance_is_reported_by_its_spread_over_all_examples(batch_size):
  kinds = (dict(kind="euclidean"), dict(kind="agree", k=3), dict(kind="logsoftmax_euclidean"))
  found = evaluator(batch_size=batch_size, distances=kinds).run(linear_classifier.variables())
  student, of_teacher = logits()
  best = of_teacher.argmax(axis=1)
  expected = {
    "kind=euclidean": np.linalg.norm(student - of_teacher, axis=1),
    "kind=agree_k=3": np.array([c in row for c, row in zip(best, np.argsort(student, axis=1)[:, -3:])], float),
    "kind=logsoftmax_euclidean": np.linalg.norm(log_softmax(student, axis=1) - log_softmax(of_teacher, axis=1), axis=1),
  }
  for name, values in expected.items():
    spread = [found[f"{name}/{what}"] for what in ("avg", "std", "min", "max")]
    np.testing.assert_allclose(spread, [values.mean(), values.std(), values.min(), values.max()], rtol=1e-4)


def test_layers_are_chosen_by_side_and_averaged_over_places():
  found = evaluator(layer=dict(student="encoder/block00/rows", teacher="rows")).run(linear_classifier.variables())
  x, y = (each.reshape(-1, 8, 8).mean(axis=1) for each in representations())
  np.testing.assert_allclose(found["cka"], cka(x, y), rtol=1e-5)


def test_a_model_agrees_with_itself_and_with_a_rotation_of_its_features():
  rotation = np.linalg.qr(RNG.normal(size=(64, 64)))[0].astype(np.float32) * 3

  def rotated(variables, batch):
    output, out = linear_classifier.predict(variables, batch)
    return output, {"pre_logits": out["pre_logits"] @ rotation + 5}

  found = evaluator({"student": linear_classifier.predict, "teacher": rotated}).run(linear_classifier.variables())
  assert found["agree@1"] == found["agree@5"] == 1
  assert found["kl"] == pytest.approx(0, abs=1e-6)
  assert found["cka"] == pytest.approx(1, abs=1e-5)


def test_a_representation_that_does_not_vary_has_no_alignment_and_none_is_measured_without_a_layer():
  assert evaluator(layer=dict(student="pre_logits", teacher="even")).run(linear_classifier.variables())["cka"] == 0
  assert list(evaluator(layer=None).run(linear_classifier.variables())) == ["agree@1", "agree@5", "kl"]


def test_an_interrupted_evaluation_gives_nothing():
  assert evaluator().run(linear_classifier.variables(), interrupted=lambda: True) is None


@pytest.mark.parametrize(
  "options, predict, words",
  [
    (
      dict(layer="prelogits"),
      PREDICT,
      r".layer names 'prelogits', which the student does not have \(did",
    ),
    (dict(layer=dict(student="pre_logits")), PREDICT, ".layer.teacher is missing"),
    (dict(pred=dict(student="student")), PREDICT, ".pred.teacher is missing"),
    (
      dict(pred=dict(student="student", teacher="tutor")),
      PREDICT,
      ".pred.teacher: the task has no prediction 'tutor'",
    ),
    (
      dict(layer=dict(student="pre_logits", teacher="prelogits")),
      PREDICT,
      ".layer names .*the teacher",
    ),
    (
      {},
      PREDICT | {"teacher": lambda variables, batch: (jnp.zeros((64, 7)), {})},
      ".pred must give logits of the same classes .*10.*7",
    ),
  ],
)
def test_what_cannot_be_compared_is_refused(options, predict, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(predict, **options).check(linear_classifier.variables())
