"""Accuracy, loss and calibration are those of scikit-learn and SciPy, whatever the batch size leaves over."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score

from core import sharding
from core.data.sources import digits
from core.errors import UserError
from core.evaluators import registry
from core.recipe.evaluators import Evaluator
from core.recipe.parse import parse

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.

PP = "value_range(0,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
PARAMS = {"w": np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)}


def predict(variables, batch):
  images = batch["image"].reshape(batch["image"].shape[0], -1)
  # Padding is zeros: a model may well give NaN there, and it must not count.
  images = images / jnp.max(images, axis=-1, keepdims=True)
  return images @ variables["params"]["w"], {}


def evaluator(output_dir=None, predict=predict, **options):
  config = dict(data=dict(name="digits", split="test"), pp_fn=PP, batch_size=64, log_steps=1) | options
  where = sharding.batch_sharding(sharding.make_mesh())
  options = parse(Evaluator, config, "config.evals.test")
  return registry.make("test", options, predict={"predict": predict}, sharding=where, output_dir=output_dir)


def variables():
  return {"params": jax.device_put(PARAMS, sharding.replicated(sharding.make_mesh()))}


def reference():
  columns = digits.load(name="digits", split="test").arrays
  images = columns["image"].reshape(len(columns["label"]), -1).astype(np.float64) / 255
  images /= images.max(axis=1, keepdims=True)
  return images @ PARAMS["w"].astype(np.float64), columns["label"]


@pytest.mark.parametrize("batch_size", [8, 64, 104, 512])
def test_every_example_counts_exactly_once(batch_size):
  logits, labels = reference()
  found = evaluator(batch_size=batch_size).run(variables())
  assert found["prec@1"] == accuracy_score(labels, logits.argmax(axis=1))
  want = -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean()
  np.testing.assert_allclose(found["loss"], want, rtol=1e-5)
  np.testing.assert_allclose(found["prec@5"], top_k_accuracy_score(labels, logits, k=5), rtol=1e-12)
  assert list(found) == ["prec@1", "prec@5", "loss", "ece"]


@pytest.mark.parametrize("loss_name", ["softmax_xent", "sigmoid_xent"])
def test_the_calibration_error_is_that_of_scikit_learns_reliability_curve(loss_name):
  logits, labels = reference()
  probability = (softmax(logits, axis=-1) if loss_name == "softmax_xent" else expit(logits)).max(axis=1)
  right = logits.argmax(axis=1) == labels
  accuracy, confidence = calibration_curve(right, probability, n_bins=15, strategy="uniform")
  sizes = np.histogram(probability, bins=15, range=(0, 1))[0]
  want = np.sum(np.abs(accuracy - confidence) * sizes[sizes > 0]) / len(labels)
  np.testing.assert_allclose(evaluator(loss_name=loss_name).run(variables())["ece"], want, rtol=1e-5)


def test_certain_and_right_is_calibrated_and_certain_and_wrong_is_not():
  for shift, want in ((0, 0.0), (1, 1.0)):
    oracle = lambda variables, batch, shift=shift: (1e3 * jnp.roll(batch["labels"], shift, axis=-1), {})
    assert evaluator(predict=oracle).run(variables())["ece"] == want


@pytest.mark.parametrize("file", [True, "classes.json"])
def test_the_table_tells_the_accuracy_of_each_class(tmp_path, file):
  logits, labels = reference()
  evaluation = evaluator(tmp_path, per_class=file)
  assert list(tmp_path.iterdir()) == []
  evaluation.run(variables())
  path = tmp_path / "test" / ("per_class.csv" if file is True else file)
  rows = json.loads(path.read_text()) if path.suffix == ".json" else list(csv.DictReader(path.open()))
  matrix = confusion_matrix(labels, logits.argmax(axis=1))
  assert [int(row["class"]) for row in rows] == list(range(10))
  assert [int(row["count"]) for row in rows] == matrix.sum(axis=1).tolist()
  np.testing.assert_allclose([float(row["accuracy"]) for row in rows], matrix.diagonal() / matrix.sum(axis=1))


def test_an_interrupted_evaluation_writes_no_table(tmp_path):
  assert evaluator(tmp_path, per_class=True).run(variables(), interrupted=lambda: True) is None
  assert list(tmp_path.iterdir()) == []


def subset(tmp_path, classes, columns):
  """The digits of `classes` alone, labelled by their place in `classes` if that is what the columns are."""
  arrays = digits.load(name="digits", split="test").arrays
  keep = np.isin(arrays["label"], classes)
  label = arrays["label"][keep]
  label = label if columns == 10 else np.array([classes.index(each) for each in label])
  np.savez(tmp_path / "subset.npz", image=arrays["image"][keep], label=label)
  options = dict(data=dict(source="arrays", path=str(tmp_path / "subset.npz")), classes=classes)
  return options | dict(pp_fn=PP.replace("onehot(10", f"onehot({columns}")), keep


@pytest.mark.parametrize("columns", [10, 6])
def test_classes_that_the_dataset_lacks_are_no_choice(tmp_path, columns):
  classes = [7, 1, 3, 2, 9, 8]
  options, keep = subset(tmp_path, classes, columns)
  found = evaluator(tmp_path, per_class=True, **options).run(variables())
  logits, labels = reference()
  logits, labels = logits[keep][:, classes], np.array([classes.index(each) for each in labels[keep]])
  assert found["prec@1"] == accuracy_score(labels, logits.argmax(axis=1))
  np.testing.assert_allclose(found["prec@5"], top_k_accuracy_score(labels, logits, k=5), rtol=1e-12)
  want = -log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean()
  np.testing.assert_allclose(found["loss"], want, rtol=1e-5)
  rows = list(csv.DictReader((tmp_path / "test" / "per_class.csv").open()))
  assert [int(row["class"]) for row in rows] == classes
  assert [int(row["count"]) for row in rows] == np.bincount(labels).tolist()


def test_examples_of_other_classes_do_not_count_and_five_of_five_is_no_metric():
  logits, labels = reference()
  found = evaluator(classes=[0, 1, 2, 3, 4]).run(variables())
  assert "prec@5" not in found
  assert found["prec@1"] == accuracy_score(labels[labels < 5], logits[labels < 5, :5].argmax(axis=1))


def test_a_dataset_without_any_label_is_refused():
  other = (digits.load(split="test").arrays["label"][0] + 1) % 10
  with pytest.raises(UserError, match="no example has a label"):
    evaluator(classes=[other], data=dict(name="digits", split="test[:1]")).run(variables())


def test_running_twice_gives_the_same_bits_with_and_without_a_cache():
  cached = evaluator(cache=True)
  once = cached.run(variables())
  assert (
    once
    == cached.run(variables())
    == evaluator(cache=False).run(variables())
    == evaluator(cache="final_data").run(variables())
  )


def test_any_of_several_labels_is_right_and_examples_without_one_do_not_count(tmp_path):
  logits, labels = reference()
  rng = np.random.default_rng(1)
  several = np.stack([labels, rng.integers(0, 10, len(labels))], axis=1)
  several[::7] = -1
  images = digits.load(name="digits", split="test").arrays["image"]
  np.savez(tmp_path / "data.npz", image=images, label=several.astype(np.int32))
  found = evaluator(data=dict(source="arrays", path=str(tmp_path / "data.npz"))).run(variables())
  best = logits.argmax(axis=1)
  counts = several[:, 0] >= 0
  want = np.mean([best[i] in several[i] for i in np.flatnonzero(counts)])
  np.testing.assert_allclose(found["prec@1"], want, rtol=1e-12)


def test_an_interrupted_evaluation_gives_nothing():
  assert evaluator().run(variables(), interrupted=lambda: True) is None


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(type="clasification"), ".type: there is no 'clasification' .did you mean 'classification'"),
    (dict(pred="predcit"), ".pred: the task has no prediction 'predcit' .did you mean 'predict'"),
    (dict(loss="x"), ".loss is no key of the evaluator classification .did you mean 'loss_name'"),
    (dict(batch_size=30), ".batch_size: 30 examples cannot be split over 8 devices; 24 or 32 can"),
    (dict(loss_name="softmax"), ".loss_name must be one of 'softmax_xent', 'sigmoid_xent'"),
    (dict(cache="all"), ".cache must be True or False or one of 'final_data', .* got 'all'"),
    (dict(classes=[1, 2, 1]), ".classes must be .* got .1, 2, 1.: it names 1 more than once"),
    (dict(classes=[-1]), r".classes\[0\] must be a whole number that is not negative, got -1"),
    (dict(classes="x"), ".classes must be a list of class indices"),
    (dict(per_class=True), ".per_class writes a file, and this program has no folder"),
    (
      dict(per_class="a/b.csv"),
      ".per_class must be the name of a .csv or .json file, got 'a/b.csv'",
    ),
  ],
)
def test_a_mistake_in_the_config_is_refused(options, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(**options)


def test_labels_lost_by_the_preprocessing_are_refused():
  with pytest.raises(UserError, match=PATH + r": the preprocessing must leave 'labels'; it leaves: image"):
    evaluator(pp_fn="value_range(0,1)|keep('image')").check(variables())


def test_labels_of_another_number_of_classes_are_refused():
  with pytest.raises(UserError, match=PATH + r".pp_fn leaves labels of shape \(12,\), the model has \(10,\) logits"):
    evaluator(pp_fn=PP.replace("onehot(10", "onehot(12")).check(variables())


def test_classes_that_the_model_lacks_are_refused():
  with pytest.raises(UserError, match=PATH + r".classes names 10; the model has 10 logits, numbered from 0"):
    evaluator(classes=[10]).check(variables())
  with pytest.raises(
    UserError, match=r"labels of shape \(12,\), the model has \(10,\) logits, of which classes names 2"
  ):
    evaluator(classes=[1, 2], pp_fn=PP.replace("onehot(10", "onehot(12")).check(variables())


def test_an_evaluator_takes_what_the_program_gives_and_its_config_comes_first():
  config = dict(data=dict(name="digits", split="test"), pp_fn=PP, pred_kw=dict(scale=-1.0))
  where = sharding.batch_sharding(sharding.make_mesh())
  scaled = lambda variables, batch, scale=1.0: (scale * predict(variables, batch)[0], {})

  def make(config, predict=scaled, **kw):
    options = parse(Evaluator, config, "config.evals.test")
    return registry.make("test", options, predict={"predict": predict}, sharding=where, **kw)

  logits, labels = reference()
  assert make(config, batch_size=64).run(variables())["prec@1"] == accuracy_score(labels, logits.argmin(axis=1))
  make(config | dict(batch_size=64), batch_size=7)
  with pytest.raises(UserError, match=PATH + r"\.batch_size is missing"):
    make(config)


def scaled_by_name(variables, batch, *, name="one", scale=1.0):
  return {"one": 1.0, "half": 0.5}[name] * float(scale) * predict(variables, batch)[0], {}


@pytest.mark.parametrize(
  "pred_kw, words",
  [
    (dict(nam="half"), r"\.pred_kw\.nam is no argument of the prediction 'predict' .*'name'"),
    (dict(variables={}), r"\.pred_kw\.variables is no argument of the prediction"),
    (dict(scale="x"), r"\.pred_kw: the prediction 'predict' cannot take {'scale': 'x'}: could not"),
    (dict(scale={}), r"\.pred_kw: the prediction 'predict' cannot take {'scale': {}}: float"),
    (dict(name="x"), r"\.pred_kw: the prediction 'predict' cannot take {'name': 'x'}: 'x'"),
    (3, r"\.pred_kw must be a dict"),
  ],
)
def test_what_a_prediction_cannot_take_is_refused(pred_kw, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(predict=scaled_by_name, pred_kw=pred_kw).check(variables())


def test_evaluators_that_differ_in_their_data_alone_share_a_program():
  traced = []

  def counting(variables, batch):
    traced.append(batch["image"].shape)
    return predict(variables, batch)

  for split in ("test", "train"):
    each = evaluator(predict=counting, data=dict(name="digits", split=split))
    each.check(variables())
    each.run(variables())
  assert len(traced) == 1
