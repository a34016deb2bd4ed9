import typing

import jax
import numpy as np
from scipy.special import expit, log_softmax

from core.recipe import tasks
from core.tasks import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 7)).astype(np.float32) * 3
SOFT = RNG.dirichlet(np.ones(7), size=5).astype(np.float32)
MULTI_HOT = (RNG.random((5, 7)) < 0.3).astype(np.float32)


def test_softmax_cross_entropy_is_scipys_in_double_precision():
  want = -np.sum(SOFT * log_softmax(LOGITS.astype(np.float64), axis=-1), axis=-1)
  np.testing.assert_allclose(losses.softmax_xent(LOGITS, SOFT), want, rtol=1e-5)


def test_sigmoid_cross_entropy_is_scipys_in_double_precision():
  p = expit(LOGITS.astype(np.float64))
  want = -np.sum(MULTI_HOT * np.log(p) + (1 - MULTI_HOT) * np.log1p(-p), axis=-1)
  np.testing.assert_allclose(losses.sigmoid_xent(LOGITS, MULTI_HOT), want, rtol=1e-5)


def test_weighted_cross_entropy_averages_over_positions_by_weight():
  logits, labels = LOGITS.reshape(1, 5, 7), SOFT.reshape(1, 5, 7)
  weights = np.array([[1, 0, 2, 0, 1]], np.float32)
  each = losses.softmax_xent(LOGITS, SOFT)
  want = (each[0] + 2 * each[2] + each[4]) / 4
  np.testing.assert_allclose(losses.weighted_softmax_xent(logits, labels, weights), [want], rtol=1e-6)


def test_an_example_of_no_weight_has_no_loss_and_a_finite_gradient():
  weights = np.zeros((5,), np.float32)[:, None]
  loss = lambda logits: losses.weighted_softmax_xent(logits, SOFT[:, None], weights).sum()
  value, grad = jax.value_and_grad(loss)(LOGITS[:, None])
  assert value == 0
  assert not np.any(grad)


def test_label_smoothing_gives_each_other_class_a_sixth_of_a_tenth():
  """The target has 0.9 and the 6 others 0.1 / 6 each, in double precision by scipy."""
  targets = RNG.integers(0, 7, 5)
  smooth = losses.weighted_softmax_xent(LOGITS[:, None], np.eye(7, dtype=np.float32)[targets][:, None], None, 0.1)
  log_p = log_softmax(LOGITS.astype(np.float64), axis=-1)
  want = [-(0.9 * row[y] + 0.1 / 6 * (row.sum() - row[y])) for row, y in zip(log_p, targets)]
  np.testing.assert_allclose(smooth, want, rtol=1e-5)


def test_not_normalized_it_is_the_sum_over_positions_by_weight():
  logits, labels = LOGITS.reshape(1, 5, 7), SOFT.reshape(1, 5, 7)
  each = -np.sum(SOFT * log_softmax(LOGITS.astype(np.float64), axis=-1), axis=-1)
  weights = np.array([[1, 0, 2, 0, 1]], np.float32)
  found = losses.weighted_softmax_xent(logits, labels, weights, normalize=False)
  np.testing.assert_allclose(found, [weights[0] @ each], rtol=1e-5)
  np.testing.assert_allclose(losses.weighted_softmax_xent(logits, labels), [each.mean()], rtol=1e-5)
  np.testing.assert_allclose(losses.weighted_softmax_xent(logits, labels, normalize=False), [each.sum()], rtol=1e-5)


def test_every_loss_that_a_config_can_name_is_here():
  assert tuple(losses.LOSSES) == typing.get_args(tasks.ClassificationLoss)
