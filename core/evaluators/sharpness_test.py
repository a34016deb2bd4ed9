"""Sharpness of a tiny model against NumPy's eigenvalues of its whole Hessian, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from core import sharding
from core.errors import UserError
from core.state import TrainState
from core.testing import linear_classifier

jax.config.update("jax_num_cpu_devices", 8)

PP = "value_range(0,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
RNG = np.random.default_rng(0)
# Four features of an image, three hidden units, ten classes: 42 parameters.
PARAMS = {"first": RNG.normal(size=(4, 3)).astype(np.float32), "second": RNG.normal(size=(3, 10)).astype(np.float32)}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
  """Nearly all the time of these tests is XLA optimizing programs that run a few times."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def features(images):
  return images.reshape(images.shape[0], 4, -1).mean(axis=-1) * 4


def predict(params, batch):
  return jnp.tanh(features(batch["image"]) @ params["first"]) @ params["second"], {}


def concave(params, batch):
  """Logits so far from the label that the loss is a logsumexp less a square, 100 - 1.5 |w|^2."""
  square = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
  return predict(params, batch)[0] + batch["labels"] * (1.5 * square - 100), {}


def mean_loss(vector, unravel, predict=predict):
  """f of all examples at once."""
  labels = jax.nn.one_hot(linear_classifier.labels("test"), 10)
  batch = {"image": jnp.asarray(linear_classifier.images("test").reshape(-1, 8, 8, 1)), "labels": labels}
  logits, _ = predict(unravel(vector), batch)
  return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, axis=1))


def evaluator(predict=predict, **options):
  config = dict(type="sharpness", data=dict(name="digits", split="test"), pp_fn=PP, batch_size=64, tolerance=1e-3)
  return linear_classifier.evaluator(config | options, predict)


def state(params=PARAMS):
  return TrainState.create(jax.device_put(params, sharding.replicated(sharding.make_mesh())), ())


@pytest.mark.parametrize("batch_size", [104, 512])
def test_the_top_eigenvalue_is_numpys_whatever_the_batch_size_leaves_over(batch_size):
  found = evaluator(batch_size=batch_size, max_iterations=1_000).run(state())
  with jax.enable_x64(True):
    vector, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS))
    want = np.linalg.eigvalsh(jax.hessian(mean_loss)(vector, unravel))
    gradient = jax.grad(mean_loss)(vector, unravel)
    uphill = vector + 0.05 * gradient / np.linalg.norm(gradient)
    loss, high = mean_loss(vector, unravel), mean_loss(uphill, unravel)
  np.testing.assert_allclose(found["top_eigenvalue"], want[-1], rtol=1e-4)
  assert found["residual"] <= 1e-3 * found["top_eigenvalue"]
  np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(found["surrogate_gap"], high - loss, rtol=1e-3)


def test_the_largest_eigenvalue_is_found_where_a_negative_one_is_larger_in_size():
  found = evaluator(concave, max_iterations=1_000).run(state())
  with jax.enable_x64(True):
    vector, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS))
    want = np.linalg.eigvalsh(jax.hessian(mean_loss)(vector, unravel, concave))
  assert -want[0] > 2 * want[-1] > 0
  np.testing.assert_allclose(found["top_eigenvalue"], want[-1], rtol=1e-3)


def test_a_seed_gives_the_same_bits_again():
  one = evaluator(max_iterations=3)
  first, again, other = (each.run(state()) for each in (one, one, evaluator(seed=1, max_iterations=3)))
  assert first == again
  assert first["top_eigenvalue"] != other["top_eigenvalue"]
  assert first["iterations"] == 3


def test_an_interrupted_evaluation_gives_nothing():
  assert evaluator().run(state(), interrupted=lambda: True) is None


def test_what_does_not_fit_is_refused_by_its_name():
  with pytest.raises(UserError, match=r"config.evals.test.rho must be a number greater than 0, got -0.1"):
    evaluator(rho=-0.1)
  with pytest.raises(UserError, match=r"labels of shape \(10,\) an example, the model has \(3,\) logits"):
    evaluator(lambda params, batch: (predict(params, batch)[0][:, :3], {})).check(state())
