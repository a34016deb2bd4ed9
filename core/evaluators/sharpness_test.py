"""Sharpness of tiny models with given parameters against NumPy's eigenvalues of their whole Hessians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from core.errors import UserError
from core.models import vit
from core.testing import compilation, linear_classifier

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.

PP = "value_range(0,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
RNG = np.random.default_rng(0)
# Four features of an image, three hidden units, ten classes: 42 parameters.
PARAMS = {"first": RNG.normal(size=(4, 3)).astype(np.float32), "second": RNG.normal(size=(3, 10)).astype(np.float32)}

quick_compilation = compilation.quick()


def features(images):
  return images.reshape(images.shape[0], 4, -1).mean(axis=-1) * 4


def predict(variables, batch):
  return jnp.tanh(features(batch["image"]) @ variables["params"]["first"]) @ variables["params"]["second"], {}


def concave(variables, batch):
  """Logits so far from the label that the loss is a logsumexp less a square, 100 - 1.5 |w|^2."""
  square = sum(jnp.sum(x**2) for x in jax.tree.leaves(variables["params"]))
  return predict(variables, batch)[0] + batch["labels"] * (1.5 * square - 100), {}


def mean_loss(vector, unravel, predict=predict):
  """f of all examples at once."""
  labels = jax.nn.one_hot(linear_classifier.labels("test"), 10)
  batch = {"image": jnp.asarray(linear_classifier.images("test").reshape(-1, 8, 8, 1)), "labels": labels}
  logits, _ = predict({"params": unravel(vector)}, batch)
  return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * labels, axis=1))


def evaluator(predict=predict, **options):
  config = dict(type="sharpness", data=dict(name="digits", split="test"), pp_fn=PP, batch_size=64, tolerance=1e-3)
  return linear_classifier.evaluator(config | options, predict)


def variables(params=PARAMS):
  return linear_classifier.variables(params)


@pytest.mark.parametrize("batch_size", [104, 512])
def test_the_top_eigenvalue_is_numpys_whatever_the_batch_size_leaves_over(batch_size):
  found = evaluator(batch_size=batch_size, max_iterations=1_000).run(variables())
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


def test_the_top_eigenvalue_of_a_transformer_is_numpys():
  """Holds for given parameters: after training an eigenvalue follows every rounding, so that no golden run pins it."""
  model = vit.Model(10, width=4, depth=1, mlp_dim=4, num_heads=2, patch_size=(4, 4), pool_type="gap", posemb="learn")

  def classify(variables, batch):
    return model.apply(variables, batch["image"])[0], {}

  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
  rng = np.random.default_rng(3)
  params = jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), shapes)
  found = evaluator(classify, batch_size=512, max_iterations=1_000).run(variables(params))
  vector, unravel = ravel_pytree(params)
  hessian = jax.jit(jax.hessian(functools.partial(mean_loss, unravel=unravel, predict=classify)))(vector)
  hessian = np.asarray(hessian, np.float64)
  np.testing.assert_allclose(hessian, hessian.T, atol=1e-5 * np.abs(hessian).max())
  np.testing.assert_allclose(found["top_eigenvalue"], np.linalg.eigvalsh(hessian)[-1], rtol=1e-3)
  assert found["residual"] <= 1e-3 * found["top_eigenvalue"]


def test_the_largest_eigenvalue_is_found_where_a_negative_one_is_larger_in_size():
  found = evaluator(concave, max_iterations=1_000).run(variables())
  with jax.enable_x64(True):
    vector, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS))
    want = np.linalg.eigvalsh(jax.hessian(mean_loss)(vector, unravel, concave))
  assert -want[0] > 2 * want[-1] > 0
  np.testing.assert_allclose(found["top_eigenvalue"], want[-1], rtol=1e-3)


def test_a_seed_gives_the_same_bits_again():
  one = evaluator(max_iterations=3)
  first, again, other = (each.run(variables()) for each in (one, one, evaluator(seed=1, max_iterations=3)))
  assert first == again
  assert first["top_eigenvalue"] != other["top_eigenvalue"]
  assert first["iterations"] == 3


def test_an_interrupted_evaluation_gives_nothing():
  assert evaluator().run(variables(), interrupted=lambda: True) is None


def test_what_does_not_fit_is_refused_by_its_name():
  with pytest.raises(UserError, match=PATH + r".rho must be a number from 1e-30 on, got -0.1"):
    evaluator(rho=-0.1)
  with pytest.raises(UserError, match=r"labels of shape \(10,\) an example, the model has \(3,\) logits"):
    evaluator(lambda variables, batch: (predict(variables, batch)[0][:, :3], {})).check(variables())


def test_variables_that_are_no_parameters_stay_as_they_are():
  def scaled(variables, batch):
    logits, _ = predict(variables, batch)
    return logits * variables["batch_stats"]["scale"], {}

  for scale in (1.0, 2.0):
    all_variables = variables() | {"batch_stats": {"scale": jnp.float32(scale)}}
    evaluation = evaluator(scaled, max_iterations=1_000)
    evaluation.check(all_variables)
    found = evaluation.run(all_variables)
    with jax.enable_x64(True):
      vector, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), PARAMS))
      by_hand = lambda variables, batch, scale=scale: (predict(variables, batch)[0] * scale, {})
      want = np.linalg.eigvalsh(jax.hessian(mean_loss)(vector, unravel, by_hand))
    np.testing.assert_allclose(found["top_eigenvalue"], want[-1], rtol=1e-3)
