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


def test_label_smoothing_mixes_in_the_uniform_distribution():
  smooth = losses.weighted_softmax_xent(LOGITS[:, None], SOFT[:, None], np.ones((5, 1), np.float32), 0.1)
  want = losses.softmax_xent(LOGITS, 0.9 * SOFT + 0.1 / 7)
  np.testing.assert_allclose(smooth, want, rtol=1e-5)


def test_every_loss_that_a_config_can_name_is_here():
  assert tuple(losses.LOSSES) == typing.get_args(tasks.ClassificationLoss)
