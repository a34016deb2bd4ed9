"""Each type of options has its evaluator, which gets all variables of a model, and whose lines begin with its path."""

import typing

import jax.numpy as jnp
import pytest

from core import sharding
from core.errors import UserError
from core.evaluators import contrastive, registry
from core.recipe import annotations
from core.recipe.evaluators import EVALUATORS, Evaluator
from core.recipe.parse import parse
from core.tasks import losses
from core.testing import linear_classifier

DATA = dict(name="digits", split="test[:10]")
MEAN = dict(type="mean", data=DATA, pp_fn=linear_classifier.IMAGES_AND_LABELS, batch_size=8)


def statistics(variables, batch):
  return {"mean": variables["params"]["w"][0, 0] * variables["batch_stats"]["mean"] + 0 * batch["_mask"]}


def test_every_type_of_options_has_its_evaluator():
  assert set(registry.MODULES) == set(EVALUATORS.values())


@pytest.mark.parametrize("kind", ["classification", "sharpness"])
def test_the_losses_of_a_classifier_are_those_that_a_config_may_name(kind):
  assert typing.get_args(annotations.hints(EVALUATORS[kind])["loss_name"]) == tuple(losses.LOSSES)


def test_the_contrastive_losses_are_those_that_a_config_may_name():
  assert typing.get_args(annotations.hints(EVALUATORS["contrastive"])["loss_name"]) == tuple(contrastive._LOSSES)


def test_a_prediction_gets_the_variables_that_are_no_parameters():
  variables = linear_classifier.variables() | {"batch_stats": {"mean": jnp.float32(3.0)}}
  evaluator = linear_classifier.evaluator(MEAN, statistics)
  evaluator.check(variables)
  found = evaluator.run(variables)
  assert found == {"mean": pytest.approx(3.0 * float(linear_classifier.PARAMS["w"][0, 0]))}
  other = variables | {"batch_stats": {"mean": jnp.float32(6.0)}}
  assert evaluator.run(other) == {"mean": pytest.approx(2 * found["mean"])}


@pytest.mark.parametrize(
  "options, line",
  [
    (dict(pred="perdict"), r"\.pred: the task has no prediction 'perdict' \(did you mean 'predict'\?\)"),
    (dict(pred={"a": "predict", "b": "x"}), r"\.pred\.b: the task has no prediction 'x' \(known: predict\)"),
    (dict(batch_size=None), r"\.batch_size is missing; it is the number of examples a step over all devices"),
    (dict(data=dict(name="digits", split="test[:0]")), r"\.data"),
    (dict(data=dict(name="digits", split="tset")), r"\.data.* there is no split 'tset'"),
    (dict(data=dict(source="arrays", path="none.npz")), r"\.data.* no file none\.npz"),
    (dict(pp_fn="value_rnge(0,1)"), r"\.pp_fn: pp op 'value_rnge' is unknown \(did you mean 'value_range'\?\)"),
    (dict(pp_fn="keep('labels')"), r"\.pp_fn: pp op keep: no key 'labels'"),
  ],
)
def test_what_it_cannot_start_with_is_one_line(options, line):
  with pytest.raises(UserError, match=r"^config\.evals\.test" + line) as refused:
    linear_classifier.evaluator(MEAN | options, statistics)
  assert len(str(refused.value)) <= 300


def test_a_name_in_the_config_begins_every_line():
  options = parse(Evaluator, MEAN | dict(pred="x"), "config.evals.minival")
  where = sharding.batch_sharding(sharding.make_mesh())
  with pytest.raises(UserError, match=r"^config\.evals\.minival\.pred: "):
    registry.make("minival", options, predict={}, sharding=where)
