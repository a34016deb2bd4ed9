"""Few-shot accuracy is that of scikit-learn's ridge regression on the same examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeClassifier

from core.errors import UserError
from core.evaluators import batches, fewshot
from core.recipe.sources import Tfds
from core.testing import linear_classifier

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.

DIGITS = dict(train=dict(name="digits", split="train"), test=dict(name="digits", split="test"))
PP = linear_classifier.IMAGES_AND_LABELS


def evaluator(**options):
  config = dict(type="fewshot_lsr", datasets=dict(digits=DIGITS), pp_train=PP, pp_eval=PP, batch_size=104, log_steps=1)
  return linear_classifier.evaluator(config | dict(num_seeds=2, shots=(1, 5, 10)) | options)


def augmented(x, x_test):
  """Standardized, with the constant feature of 100, in double precision."""
  mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-5
  return [np.pad((each - mean) / deviation, ((0, 0), (0, 1)), constant_values=100.0) for each in (x, x_test)]


def sklearn_accuracy(shots, seed, l2, train=linear_classifier.images, test=linear_classifier.images):
  y = linear_classifier.labels("train")
  rows = fewshot.first_shots(y, shots, seed)
  x, x_test = augmented(train("train")[rows], test("test"))
  model = RidgeClassifier(alpha=l2, fit_intercept=False, solver="cholesky").fit(x, y[rows])
  return model.score(x_test, linear_classifier.labels("test"))


# Fewer channels than examples, more, and as many; a constant channel, and one whose mean hides its deviation.
@pytest.mark.parametrize("examples, channels", [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("l2", [1e-2, 1.0, 1024.0])
def test_the_scores_are_those_of_ridge_regression(examples, channels, l2):
  rng = np.random.default_rng(0)
  x, x_test = rng.normal(3, 2, (examples, channels)), rng.normal(3, 2, (50, channels))
  x[:, 0] = x_test[:, 0] = 77.7
  x[:, 1] += 100
  x, x_test = x.astype(np.float32), x_test.astype(np.float32)
  labels = np.arange(examples) % 4
  got = fewshot.ridge_scores(x, labels, x_test, l2, num_classes=4)
  features, test_features = augmented(x.astype(np.float64), x_test.astype(np.float64))
  ridge = Ridge(alpha=l2, fit_intercept=False, solver="cholesky").fit(features, 2 * np.eye(4)[labels] - 1)
  np.testing.assert_allclose(got, ridge.predict(test_features), atol=2e-4, rtol=1e-3)


def test_accuracies_are_those_of_scikit_learn_over_shots_and_seeds():
  found = evaluator().run(linear_classifier.variables())
  for shots in (1, 5, 10):
    want = [sklearn_accuracy(shots, seed, 1024.0) for seed in range(2)]
    np.testing.assert_allclose(found[f"digits_{shots}shot"], np.mean(want), atol=1e-3)
    np.testing.assert_allclose(found[f"digits_{shots}shot_std"], np.std(want, ddof=1), atol=1e-3)
  assert found["digits_1shot"] < found["digits_5shot"] < found["digits_10shot"]
  assert len(found) == 6


def test_several_layers_and_datasets_in_one_evaluator_and_what_is_displayed_first():
  half = DIGITS | dict(test=dict(name="digits", split="test[:50%]"))
  found = evaluator(
    datasets=dict(digits=DIGITS, half=half),
    representation_layer=["pre_logits", "encoder/block00/rows"],
    pool="mean",
    shots=5,
    num_seeds=1,
    display_first=[("half", 5), ("imagenet", 10)],
  ).run(linear_classifier.variables())
  assert list(found) == [
    "pre_logits/half_5shot",
    "encoder/block00/rows/half_5shot",
    "pre_logits/digits_5shot",
    "encoder/block00/rows/digits_5shot",
  ]
  columns = lambda split: linear_classifier.images(split).reshape(-1, 8, 8).mean(axis=1)
  for layer, images in (("pre_logits", linear_classifier.images), ("encoder/block00/rows", columns)):
    want = sklearn_accuracy(5, 0, 1024.0, images, images)
    np.testing.assert_allclose(found[f"{layer}/digits_5shot"], want, atol=1e-3)


def test_one_strength_is_chosen_for_all_datasets_by_mean_rank():
  strengths = (1e-3, 64.0, 1e9)
  found = evaluator(l2_reg=strengths, shots=(5,)).run(linear_classifier.variables())
  accuracies = [np.mean([sklearn_accuracy(5, seed, l2) for seed in range(2)]) for l2 in strengths]
  best = int(np.argmax(accuracies))
  assert found["5shot_l2"] == strengths[best]
  np.testing.assert_allclose(found["digits_5shot"], accuracies[best], atol=1e-3)
  # Ranks 1 2 3, 3 2 1 and 2 3 1: means 2, 2.33 and 1.67, whatever the accuracies are; shared ranks: the first wins.
  assert fewshot.best_on_average(np.array([[0.1, 0.2, 0.9], [0.52, 0.51, 0.5], [0.6, 0.7, 0.1]])) == 1
  assert fewshot.best_on_average(np.array([[0.5, 0.5, 0.5]])) == 0


def test_the_shots_are_nested_and_balanced_and_differ_by_seed():
  labels = np.random.default_rng(0).integers(0, 4, 60)
  labels[labels == 3] = 7
  labels[:2] = 9  # A class of two examples gives what it has.
  one, five = fewshot.first_shots(labels, 1, seed=0), fewshot.first_shots(labels, 5, seed=0)
  assert set(one) < set(five)
  values, counts = np.unique(labels[five], return_counts=True)
  assert dict(zip(values.tolist(), counts.tolist())) == {0: 5, 1: 5, 2: 5, 7: 5, 9: 2}
  assert set(five) != set(fewshot.first_shots(labels, 5, seed=1))


def test_a_class_that_only_the_test_split_has_is_never_right(tmp_path):
  images, labels = linear_classifier.images("train")[:300] * 255, linear_classifier.labels("train")[:300]
  keep = labels != 3
  np.savez(
    tmp_path / "data.npz",
    **{"train/image": images[keep].reshape(-1, 8, 8, 1).astype(np.uint8), "train/label": labels[keep]},
    **{"test/image": images.reshape(-1, 8, 8, 1).astype(np.uint8), "test/label": labels},
  )
  data = {split: dict(source="arrays", path=str(tmp_path / "data.npz"), split=split) for split in ("train", "test")}
  found = evaluator(datasets=dict(part=data), shots=1000, num_seeds=1, l2_reg=1.0).run(linear_classifier.variables())
  x, x_test = augmented(images[keep] / 255, images / 255)
  model = RidgeClassifier(alpha=1.0, fit_intercept=False, solver="cholesky").fit(x, labels[keep])
  np.testing.assert_allclose(found["part_1000shot"], model.score(x_test, labels), atol=1e-3)


def test_an_interrupted_evaluation_gives_nothing():
  calls = iter([False] * 16 + [True])
  assert evaluator().run(linear_classifier.variables(), interrupted=lambda: True) is None
  assert (
    evaluator().run(linear_classifier.variables(), interrupted=lambda: next(calls)) is None
  )  # Between two solutions.


def test_datasets_may_be_written_as_published_configs_do(monkeypatch):
  opened = []
  monkeypatch.setattr(batches, "open_batches", lambda data, pp, **kw: opened.append((data, pp)))
  evaluator(datasets=dict(pets=("oxford_iiit_pet", "train", "test[:50%]")), pp_train="a", pp_eval="b")
  train, test = (Tfds(name="oxford_iiit_pet", split=split) for split in ("train", "test[:50%]"))
  assert opened == [(train, "a"), (test, "b")]


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(shots=0), r"\.shots must be a whole number from 1 on or a list of at least one, got 0"),
    (dict(shots=[]), r"\.shots must be a list of at least one"),
    (dict(display_first=["digits"]), r"\.display_first\[0\] must be \(text, a whole number"),
    (dict(l2_reg=(1.0, 0)), r"\.l2_reg\[1\] must be a number from 1e-30 on, got 0"),
    (dict(num_seeds=True), r"\.num_seeds must be a whole number in \[1, 1000\], got True"),
    (dict(datasets={}), r"\.datasets must be a dict of at least one"),
    (
      dict(datasets=dict(x=("cifar10", "train"))),
      r"\.datasets\.x must be \(text that is not empty, text .*, got \('cifar10', 'train'\)",
    ),
    (
      dict(datasets=dict(x=dict(trian=1))),
      r"\.datasets\.x\.trian is no key of a dataset \(did you mean 'train'\?\)",
    ),
    (dict(datasets=dict(x=dict(train=DIGITS["train"]))), r"\.datasets\.x\.test is missing"),
    (
      dict(datasets=dict(x=DIGITS | dict(test=dict(name="digits", split="tst")))),
      r"\.datasets\.x\.test.*there is no split 'tst'",
    ),
    (
      dict(datasets=dict(x=DIGITS | dict(test=dict(name="digits")))),
      r".datasets.x.test.split is missing",
    ),
    (dict(datasets=3), r"\.datasets must be a dict of .*, got 3"),
    (dict(pool="max"), r"\.pool must be one of 'mean', 'first', 'flatten', got 'max'"),
    (dict(batch_size=30), r"\.batch_size: .*24 or 32 can"),
    (dict(representation_layers="x"), ".representation_layers is no key .* .did you mean 'representation_layer'"),
    (dict(cache="final"), r"\.cache must be .*, got 'final'"),
  ],
)
def test_a_mistake_in_the_config_is_refused(options, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(**options)


@pytest.mark.parametrize(
  "options, words",
  [
    (
      dict(representation_layer="prelogits"),
      r"\.representation_layer names 'prelogits', .* \(did you mean 'pre_logits'\?\)",
    ),
    (dict(representation_layer="xyz"), ".*known: encoder/block00/rows, encoder/block01/total, output, pre_logits"),
    (
      dict(representation_layer="encoder/block00/rows"),
      r"\.pool must be 'mean', .* of 'encoder/block00/rows', of shape \(8, 8\) an example",
    ),
    (dict(representation_layer="encoder/block01/total"), ".*not one vector an example"),
    (dict(label_key="labels"), r": the preprocessing must leave 'labels'; it leaves: image, label"),
    (
      dict(pp_train="onehot(10,key='label')|" + PP),
      r"\.datasets\.digits: 'label' must be one integer an example, not float32",
    ),
  ],
)
def test_what_does_not_fit_the_model_is_refused_before_the_first_evaluation(options, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(**options).check(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, linear_classifier.variables())))
