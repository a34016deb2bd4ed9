import jax
import jax.numpy as jnp
import numpy as np

from core.tasks.mixup import mixup

IMAGES = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
LABELS = np.eye(4, dtype=np.float32)


def test_images_and_labels_are_mixed_with_the_neighbour_by_the_same_weight():
  images, labels = mixup(jax.random.key(3), 0.5, IMAGES, LABELS)
  weight = labels[0, 0]
  assert 0.5 <= weight <= 1
  np.testing.assert_allclose(labels, weight * np.eye(4) + (1 - weight) * np.roll(np.eye(4), 1, axis=0), rtol=1e-6)
  np.testing.assert_allclose(images, weight * IMAGES + (1 - weight) * np.roll(IMAGES, 1, axis=0), rtol=1e-6)


def test_weights_follow_the_folded_beta_distribution():
  one = lambda key: mixup(key, 0.4, jnp.array([1.0, 0.0]))[0][0]
  weights = jax.vmap(one)(jax.random.split(jax.random.key(0), 4_000))
  want = np.random.default_rng(1).beta(0.4, 0.4, 100_000)
  want = np.maximum(want, 1 - want)
  quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
  np.testing.assert_allclose(np.quantile(weights, quantiles), np.quantile(want, quantiles), atol=0.02)


def test_no_mixup_is_the_identity():
  assert mixup(jax.random.key(0), 0, IMAGES, LABELS) == (IMAGES, LABELS)
