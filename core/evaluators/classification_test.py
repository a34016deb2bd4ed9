"""Accuracy and loss are those of scikit-learn and SciPy, whatever the batch size leaves over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score

from core import sharding
from core.data.sources import digits
from core.errors import UserError
from core.evaluators import registry
from core.training.state import TrainState

jax.config.update("jax_num_cpu_devices", 8)

PP = "value_range(0,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
PARAMS = {"w": np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)}


def predict(params, batch):
  images = batch["image"].reshape(batch["image"].shape[0], -1)
  # Padding is zeros: a model may well give NaN there, and it must not count.
  images = images / jnp.max(images, axis=-1, keepdims=True)
  return images @ params["w"], {}


def evaluator(**options):
  config = dict(data=dict(name="digits", split="test"), pp_fn=PP, batch_size=64, log_steps=1) | options
  where = sharding.batch_sharding(sharding.make_mesh())
  return registry.make("test", config, predict={"predict": predict}, sharding=where)


def state():
  return TrainState.create(jax.device_put(PARAMS, sharding.replicated(sharding.make_mesh())), ())


def reference():
  columns = digits.load(name="digits", split="test").arrays
  images = columns["image"].reshape(len(columns["label"]), -1).astype(np.float64) / 255
  images /= images.max(axis=1, keepdims=True)
  return images @ PARAMS["w"].astype(np.float64), columns["label"]


@pytest.mark.parametrize("batch_size", [8, 64, 104, 512])
def test_every_example_counts_exactly_once(batch_size):
  logits, labels = reference()
  found = evaluator(batch_size=batch_size).run(state())
  assert found["prec@1"] == accuracy_score(labels, logits.argmax(axis=1))
  want = -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean()
  np.testing.assert_allclose(found["loss"], want, rtol=1e-5)


def test_running_twice_gives_the_same_bits_with_and_without_a_cache():
  cached = evaluator(cache=True)
  assert cached.run(state()) == cached.run(state()) == evaluator().run(state())


def test_any_of_several_labels_is_right_and_examples_without_one_do_not_count(tmp_path):
  logits, labels = reference()
  rng = np.random.default_rng(1)
  several = np.stack([labels, rng.integers(0, 10, len(labels))], axis=1)
  several[::7] = -1
  images = digits.load(name="digits", split="test").arrays["image"]
  np.savez(tmp_path / "data.npz", image=images, label=several.astype(np.int32))
  found = evaluator(data=dict(source="arrays", path=str(tmp_path / "data.npz"))).run(state())
  best = logits.argmax(axis=1)
  counts = several[:, 0] >= 0
  want = np.mean([best[i] in several[i] for i in np.flatnonzero(counts)])
  np.testing.assert_allclose(found["prec@1"], want, rtol=1e-12)


def test_an_interrupted_evaluation_gives_nothing():
  assert evaluator().run(state(), interrupted=lambda: True) is None


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(type="clasification"), "did you mean 'classification'"),
    (dict(pred="predcit"), "did you mean 'predict'"),
    (dict(loss="x"), "did you mean"),
    (dict(batch_size=30), "24 or 32 can"),
    (dict(loss_name="softmax"), "did you mean 'softmax_xent'"),
  ],
)
def test_a_mistake_in_the_config_is_refused(options, words):
  with pytest.raises(UserError, match=words):
    evaluator(**options)


def test_labels_lost_by_the_preprocessing_are_refused():
  with pytest.raises(UserError, match="must leave 'labels'; it leaves: image"):
    evaluator(pp_fn="value_range(0,1)|keep('image')").check(state())


def test_labels_of_another_number_of_classes_are_refused():
  with pytest.raises(UserError, match=r"labels of shape \(12,\), the model has \(10,\) logits"):
    evaluator(pp_fn=PP.replace("onehot(10", "onehot(12")).check(state())
