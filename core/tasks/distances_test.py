import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from core.recipe import distances as recipes
from core.tasks import distances

RNG = np.random.default_rng(0)
STUDENT, TEACHER = (RNG.normal(size=(5, 7)).astype(np.float32) * 3 for _ in range(2))


@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_kl_is_scipys_relative_entropy_in_double_precision_times_the_squared_temperature(t):
  p, q = (softmax(logits.astype(np.float64) / t, axis=-1) for logits in (TEACHER, STUDENT))
  found = distances.make(recipes.Kl(t=t))(STUDENT, TEACHER)
  np.testing.assert_allclose(found, t**2 * entropy(p, q, axis=-1), rtol=1e-5)


def test_the_gradient_of_kl_keeps_its_size_at_high_temperatures():
  # With t to infinity it is the logits' difference over the number of classes (Hinton et al. 2015, eq. 4).
  gradient = jax.grad(lambda student: distances.kl(student, TEACHER, t=100.0).sum())(STUDENT)
  centred = [logits - logits.mean(axis=1, keepdims=True) for logits in (STUDENT, TEACHER)]
  np.testing.assert_allclose(gradient, (centred[0] - centred[1]) / 7, atol=0.05)


def test_kl_is_finite_where_a_teacher_excludes_a_class():
  teacher = np.where(np.arange(7) == 2, -np.inf, TEACHER).astype(np.float32)
  p = softmax(teacher.astype(np.float64), axis=-1)
  want = entropy(p, softmax(STUDENT.astype(np.float64), axis=-1), axis=-1)
  np.testing.assert_allclose(distances.kl(STUDENT, teacher), want, rtol=1e-5)
  assert np.isfinite(jax.grad(lambda student: distances.kl(student, teacher).sum())(STUDENT)).all()


def test_the_mean_of_several_kls_has_the_gradient_of_that_to_the_mean_of_the_probabilities():
  other = RNG.normal(size=(5, 7)).astype(np.float32)
  of_both = lambda student: (distances.kl(student, TEACHER) + distances.kl(student, other)).sum() / 2
  mean = np.log((softmax(TEACHER, axis=-1) + softmax(other, axis=-1)) / 2)
  of_mean = lambda student: distances.kl(student, mean).sum()
  np.testing.assert_allclose(jax.grad(of_both)(STUDENT), jax.grad(of_mean)(STUDENT), atol=1e-6)


def test_the_euclidean_distance_is_numpys_with_a_finite_gradient_at_zero():
  np.testing.assert_allclose(
    distances.euclidean(STUDENT, TEACHER), np.linalg.norm(STUDENT - TEACHER, axis=1), rtol=1e-6
  )
  assert not np.any(jax.grad(lambda student: distances.euclidean(student, STUDENT).sum())(STUDENT))


def test_a_hard_label_is_the_class_that_the_teacher_prefers():
  want = -log_softmax(STUDENT.astype(np.float64), axis=-1)[np.arange(5), TEACHER.argmax(axis=1)]
  np.testing.assert_allclose(distances.hard(STUDENT, TEACHER), want, rtol=1e-5)


def test_l2_and_the_distance_of_log_probabilities_are_numpys():
  np.testing.assert_allclose(distances.l2(STUDENT, TEACHER), ((STUDENT - TEACHER) ** 2).sum(1), rtol=1e-5)
  logs = [log_softmax(logits.astype(np.float64), axis=-1) for logits in (STUDENT, TEACHER)]
  found = distances.logsoftmax_euclidean(STUDENT, TEACHER)
  np.testing.assert_allclose(found, np.linalg.norm(logs[0] - logs[1], axis=1), rtol=1e-5)
  shifted = distances.logsoftmax_euclidean(STUDENT + 5, STUDENT)
  np.testing.assert_allclose(shifted, 0, atol=1e-5)
  assert np.isfinite(jax.grad(lambda student: distances.logsoftmax_euclidean(student, STUDENT).sum())(STUDENT)).all()


def test_a_smoothed_hard_label_is_scipys_relative_entropy():
  p = np.full((5, 7), 0.1 / 6)
  p[np.arange(5), TEACHER.argmax(axis=1)] = 0.9
  q = softmax(STUDENT.astype(np.float64), axis=-1)
  found = distances.make(recipes.Hard(ls=0.1))(STUDENT, TEACHER)
  np.testing.assert_allclose(found, entropy(p, q, axis=-1), rtol=1e-5)
  np.testing.assert_allclose(distances.hard(np.log(p).astype(np.float32), TEACHER, ls=0.1), 0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_agreement_counts_the_teachers_class_among_the_students_first(k):
  rank = (np.take_along_axis(STUDENT, TEACHER.argmax(1)[:, None], 1) < STUDENT).sum(1)
  np.testing.assert_array_equal(distances.make(recipes.Agree(k=k))(STUDENT, TEACHER), rank < k)


def test_every_distance_that_a_config_can_name_is_here():
  for name, kind in recipes.DISTANCES.items():
    found = distances.make(kind())(STUDENT, TEACHER)
    np.testing.assert_array_equal(found, getattr(distances, name)(STUDENT, TEACHER))
