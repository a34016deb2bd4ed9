"""Nearest neighbours are those of scikit-learn, and ties go where the documentation says."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from core import sharding
from core.errors import UserError
from core.evaluators import knn, transfer_features
from core.testing import linear_classifier

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.

DIGITS = dict(train=dict(name="digits", split="train"), test=dict(name="digits", split="test"))
PP = linear_classifier.IMAGES_AND_LABELS


def evaluator(**options):
  config = dict(type="knn", datasets=dict(digits=DIGITS), pp_train=PP, pp_eval=PP, batch_size=104, log_steps=1)
  return linear_classifier.evaluator(config | options)


@pytest.mark.parametrize(
  "options, vote",
  [
    (dict(weights="exp", temperature=0.3), lambda distance: np.exp((1 - distance) / 0.3)),
    (dict(weights="uniform"), "uniform"),
  ],
  ids=["exp", "uniform"],
)
def test_accuracies_are_those_of_scikit_learn(options, vote):
  found = evaluator(k=(1, 10, 200), **options).run(linear_classifier.variables())
  for k in (1, 10, 200):
    model = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute", weights=vote)
    model.fit(linear_classifier.images("train"), linear_classifier.labels("train"))
    want = model.score(linear_classifier.images("test"), linear_classifier.labels("test"))
    np.testing.assert_allclose(found[f"digits_{k}nn"], want, atol=1e-3)
  assert len(found) == 3


def test_a_low_temperature_overflows_no_vote():
  found = evaluator(k=20, temperature=1e-4).run(linear_classifier.variables())
  assert found["digits_20nn"] == evaluator(k=1).run(linear_classifier.variables())["digits_1nn"]


def test_of_equal_neighbours_the_first_and_of_equal_votes_the_lowest_class_counts():
  # Vectors of ones and minus ones: inner products are whole numbers, exact in float32, and many are equal.
  rng = np.random.default_rng(0)
  bank, queries = (rng.choice([-1.0, 1.0], (n, 6)).astype(np.float32) for n in (203, 50))
  labels = rng.integers(0, 5, 203).astype(np.int32)
  where = sharding.batch_sharding(sharding.make_mesh())
  similarity, near = knn.nearest(
    queries,
    transfer_features.split_rows(bank, where),
    transfer_features.split_rows(labels, where, fill=-1),
    k=30,
    sharding=where,
  )
  order = np.argsort(-(queries @ bank.T), axis=1, kind="stable")[:, :30]
  np.testing.assert_array_equal(near, labels[order])
  np.testing.assert_array_equal(similarity, np.take_along_axis(queries @ bank.T, order, axis=1))
  votes = np.stack([(labels[order] == each).sum(axis=1) for each in range(5)], axis=1)
  np.testing.assert_array_equal(knn.vote(np.ones((50, 30), np.float32), near), votes.argmax(axis=1))


def test_few_neighbours_on_many_devices():
  small = dict(train=dict(name="digits", split="train[:11]"), test=DIGITS["test"])
  found = evaluator(datasets=dict(small=small), k=11, weights="uniform").run(linear_classifier.variables())
  labels = linear_classifier.labels("train")[:11]
  assert found["small_11nn"] == np.mean(linear_classifier.labels("test") == np.bincount(labels).argmax())


def test_queries_in_chunks_give_the_same_as_all_at_once(monkeypatch):
  whole = evaluator(k=5).run(linear_classifier.variables())
  monkeypatch.setattr(knn, "_MAX_QUERIES", 7)
  assert evaluator(k=5).run(linear_classifier.variables()) == whole


def test_several_layers_are_named_and_interruption_gives_nothing():
  layers = ["output", "encoder/block00/rows"]
  found = evaluator(k=3, representation_layer=layers, pool="flatten").run(linear_classifier.variables())
  assert list(found) == ["output/digits_3nn", "encoder/block00/rows/digits_3nn"]
  assert found["output/digits_3nn"] < found["encoder/block00/rows/digits_3nn"]
  assert evaluator().run(linear_classifier.variables(), interrupted=lambda: True) is None
  calls = iter([False] * 18 + [True])  # 14 batches of train, 4 of test, then the neighbours.
  assert evaluator().run(linear_classifier.variables(), interrupted=lambda: next(calls)) is None


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(k=0), ".k must be a whole number from 1 on or a list of at least one, got 0"),
    (dict(k=(10, 1438)), ".k is 1438; datasets.digits has 1437 train examples"),
    (dict(temperature=0), ".temperature must be a number from 1e-30 on, got 0"),
    (dict(temperature=float("nan")), ".temperature must be a number from 1e-30 on, got nan"),
    (dict(k=[10, True]), r".k\[1\] must be a whole number from 1 on, got True"),
    (dict(weights="distance"), ".weights must be one of 'exp', 'uniform', got 'distance'"),
    (dict(shots=1), ".shots is no key of the evaluator knn"),
  ],
)
def test_a_mistake_in_the_config_is_refused(options, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(**options)
