"""One entry of a config's evals for several predictions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core import sharding
from core.errors import UserError
from core.evaluators import registry
from core.recipe.evaluators import Evaluator
from core.recipe.parse import parse


# Each prediction gives the share of its own; the digits' test split is small and comes with the pins.
def times(variables, batch, factor):
  return {"value": variables["params"]["w"] * factor + 0 * batch["label"]}


PREDICT = {f"predict_{k}": functools.partial(times, factor=k) for k in (2, 5)}
CONFIG = dict(
  type="mean",
  data=dict(name="digits", split="test[:10]"),
  pp_fn="value_range(-1,1)|keep('image','label')",
  batch_size=4,
  pred=ConfigDict({"two": "predict_2", "five": "predict_5"}),
)

VARIABLES = {"params": {"w": jnp.array(3.0)}}


def make(**changes):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  options = parse(Evaluator, CONFIG | changes, "config.evals.val")
  return registry.make("val", options, predict=PREDICT, sharding=sharding.batch_sharding(mesh))


def test_each_prediction_has_its_metrics_under_its_label():
  evaluator = make()
  evaluator.check(VARIABLES)
  assert evaluator.run(VARIABLES) == {"two/value": 6.0, "five/value": 15.0}
  np.testing.assert_array_equal(next(iter(evaluator.data))["label"].shape, (4,))


def test_it_leaves_off_when_it_is_told_to():
  assert make().run(VARIABLES, lambda: True) is None


@pytest.mark.parametrize(
  "pred, words",
  [
    ({}, r"^config\.evals\.val\.pred must be a prediction, or a dict of at least one"),
    ({"a/b": "predict_2"}, r"^config\.evals\.val\.pred has the label 'a/b'"),
    ({"a": 3}, r"^config\.evals\.val\.pred\.a must be text"),
    ({"a": "predict_3"}, r"^config\.evals\.val\.pred\.a: the task has no prediction 'predict_3' .*predict_"),
  ],
)
def test_a_mistake_is_refused(pred, words):
  with pytest.raises(UserError, match=words):
    make(pred=pred)


def test_a_table_of_each_prediction_goes_to_a_folder_of_its_own(tmp_path):
  where = sharding.batch_sharding(sharding.make_mesh(devices=jax.devices()[:1]))
  predict = {name: lambda variables, batch: (batch["labels"] * variables["params"]["w"], {}) for name in PREDICT}
  pp = "value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
  config = CONFIG | dict(type="classification", pp_fn=pp, per_class=True)
  options = parse(Evaluator, config, "config.evals.val")
  evaluator = registry.make("val", options, predict=predict, sharding=where, output_dir=tmp_path)
  found = evaluator.run(VARIABLES)
  assert found["two/prec@1"] == found["five/prec@1"] == 1.0
  assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.csv")} == {
    "two/val/per_class.csv",
    "five/val/per_class.csv",
  }
