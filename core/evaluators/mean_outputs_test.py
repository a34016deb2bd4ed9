"""The mean of each value is NumPy's, whatever the batch size leaves over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.testing import linear_classifier

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.


def scores(variables, batch):
  logits, out = linear_classifier.predict(variables, batch)
  right = logits.argmax(axis=-1) == batch["label"]
  return {"right": right, "encoder": {"total": out["encoder"]["block01"]["total"]}, "half": right.astype(jnp.bfloat16)}


def evaluator(predict, **options):
  config = dict(
    type="mean", data=dict(name="digits", split="test"), pp_fn=linear_classifier.IMAGES_AND_LABELS, batch_size=64
  )
  return linear_classifier.evaluator(config | options, predict)


@pytest.mark.parametrize("batch_size", [8, 104, 512])
def test_every_example_counts_exactly_once(batch_size):
  found = evaluator(scores, batch_size=batch_size).run(linear_classifier.variables())
  right = (linear_classifier.images("test") @ linear_classifier.PARAMS["w"].astype(np.float64)).argmax(
    axis=1
  ) == linear_classifier.labels("test")
  assert found["right"] == found["half"] == right.mean()
  np.testing.assert_allclose(found["encoder/total"], linear_classifier.images("test").sum(axis=1).mean(), rtol=1e-6)


def test_a_prediction_may_give_more_beside_its_dict_and_a_nan_of_an_example_shows():
  found = evaluator(lambda variables, batch: (scores(variables, batch), {})).run(linear_classifier.variables())
  assert 0 < found["right"] < 1
  some = evaluator(lambda variables, batch: {"x": jnp.where(batch["label"] == 3, jnp.nan, 1.0)}).run(
    linear_classifier.variables()
  )
  assert np.isnan(some["x"])


def test_an_interrupted_evaluation_gives_nothing():
  assert evaluator(scores).run(linear_classifier.variables(), interrupted=lambda: True) is None


@pytest.mark.parametrize(
  "predict, words",
  [
    (
      linear_classifier.predict,
      ".pred must be a prediction that gives a dict of values an example, not ",
    ),
    (lambda variables, batch: {}, ".pred .*not a dict without any"),
    (
      lambda variables, batch: {"a": {"b": batch["image"]}},
      r".pred gives a/b of shape \(64, 8, 8, 1\), which is not one value",
    ),
    (
      lambda variables, batch: {"mean": batch["label"].mean()},
      r".pred gives mean of shape \(\), which is not one value",
    ),
  ],
)
def test_what_is_no_value_an_example_is_refused(predict, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(predict).check(linear_classifier.variables())
