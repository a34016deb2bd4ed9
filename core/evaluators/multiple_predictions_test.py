"""One entry of a config's evals for several predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from core import sharding
from core.errors import UserError
from core.evaluators import registry
from core.state import TrainState

# Each prediction gives the share of its own; the digits' test split is small and comes with the pins.
PREDICT = {f"predict_{k}": (lambda params, batch, k=k: {"value": params["w"] * k + 0 * batch["label"]}) for k in (2, 5)}
CONFIG = dict(
  type="mean",
  data=dict(name="digits", split="test[:10]"),
  pp_fn="value_range(-1,1)|keep('image','label')",
  batch_size=4,
  pred=ConfigDict({"two": "predict_2", "five": "predict_5"}),
)


def make(**changes):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return registry.make("val", CONFIG | changes, predict=PREDICT, sharding=sharding.batch_sharding(mesh))


def test_each_prediction_has_its_metrics_under_its_label():
  evaluator, state = make(), TrainState.create({"w": jnp.array(3.0)}, ())
  evaluator.check(state)
  assert evaluator.run(state) == {"two/value": 6.0, "five/value": 15.0}
  np.testing.assert_array_equal(next(iter(evaluator.data))["label"].shape, (4,))


def test_it_leaves_off_when_it_is_told_to():
  assert make().run(TrainState.create({"w": jnp.array(3.0)}, ()), lambda: True) is None


@pytest.mark.parametrize(
  "pred, words",
  [
    ({}, r"config\.evals\.val\.pred is an empty dict"),
    ({"a": "predict_3"}, r"config\.evals\.val\.pred: no prediction 'predict_3' .*predict_"),
  ],
)
def test_a_mistake_is_refused(pred, words):
  with pytest.raises(UserError, match=words):
    make(pred=pred)


def test_a_table_of_each_prediction_goes_to_a_folder_of_its_own(tmp_path):
  where = sharding.batch_sharding(sharding.make_mesh(devices=jax.devices()[:1]))
  predict = {name: lambda params, batch: (batch["labels"] * params["w"], {}) for name in PREDICT}
  pp = "value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
  config = CONFIG | dict(type="classification", pp_fn=pp, per_class=True)
  evaluator = registry.make("val", config, predict=predict, sharding=where, output_dir=tmp_path)
  found = evaluator.run(TrainState.create({"w": jnp.array(3.0)}, ()))
  assert found["two/prec@1"] == found["five/prec@1"] == 1.0
  assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.csv")} == {
    "two/val/per_class.csv",
    "five/val/per_class.csv",
  }
