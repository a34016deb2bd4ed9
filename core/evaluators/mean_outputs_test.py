"""The mean of each value is NumPy's, whatever the batch size leaves over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.testing import linear_classifier

jax.config.update("jax_num_cpu_devices", 8)


def scores(params, batch):
  logits, out = linear_classifier.predict(params, batch)
  right = logits.argmax(axis=-1) == batch["label"]
  return {"right": right, "encoder": {"total": out["encoder"]["block01"]["total"]}, "half": right.astype(jnp.bfloat16)}


def evaluator(predict, **options):
  config = dict(
    type="mean", data=dict(name="digits", split="test"), pp_fn=linear_classifier.IMAGES_AND_LABELS, batch_size=64
  )
  return linear_classifier.evaluator(config | options, predict)


@pytest.mark.parametrize("batch_size", [8, 104, 512])
def test_every_example_counts_exactly_once(batch_size):
  found = evaluator(scores, batch_size=batch_size).run(linear_classifier.state())
  right = (linear_classifier.images("test") @ linear_classifier.PARAMS["w"].astype(np.float64)).argmax(
    axis=1
  ) == linear_classifier.labels("test")
  assert found["right"] == found["half"] == right.mean()
  np.testing.assert_allclose(found["encoder/total"], linear_classifier.images("test").sum(axis=1).mean(), rtol=1e-6)


def test_a_prediction_may_give_more_beside_its_dict_and_a_nan_of_an_example_shows():
  found = evaluator(lambda params, batch: (scores(params, batch), {})).run(linear_classifier.state())
  assert 0 < found["right"] < 1
  some = evaluator(lambda params, batch: {"x": jnp.where(batch["label"] == 3, jnp.nan, 1.0)}).run(
    linear_classifier.state()
  )
  assert np.isnan(some["x"])


def test_an_interrupted_evaluation_gives_nothing():
  assert evaluator(scores).run(linear_classifier.state(), interrupted=lambda: True) is None


@pytest.mark.parametrize(
  "predict, words",
  [
    (linear_classifier.predict, "a dict of values an example, not "),
    (lambda params, batch: {}, "not a dict without any"),
    (lambda params, batch: {"a": {"b": batch["image"]}}, r"a/b has shape \(64, 8, 8, 1\), which is not one value"),
    (lambda params, batch: {"mean": batch["label"].mean()}, r"mean has shape \(\), which is not one value"),
  ],
)
def test_what_is_no_value_an_example_is_refused(predict, words):
  with pytest.raises(UserError, match=words):
    evaluator(predict).check(linear_classifier.state())
