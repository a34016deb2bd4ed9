import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from core import sharding
from core.errors import UserError
from core.training import step as step_lib
from core.training.state import TrainState
from core.training.task import Task

jax.config.update("jax_num_cpu_devices", 8)


class Linear(Task):
  """Least squares: its gradient is known in closed form."""

  def init(self, rng, batch):
    return {"params": {"w": jnp.zeros(batch["x"].shape[1])}}

  def loss(self, params, batch, rng):
    error = batch["x"] @ params["w"] - batch["y"]
    return jnp.mean(error**2) / 2, {"error": jnp.mean(jnp.abs(error))}

  @property
  def predict(self):
    return {"predict": lambda params, batch: (batch["x"] @ params["w"], {})}


RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(16, 3)).astype(np.float32), "y": RNG.normal(size=16).astype(np.float32)}


def first_state(tx):
  params = {"w": jnp.array([0.5, -1.0, 2.0])}
  return TrainState.create(params, tx.init(params))


def test_a_step_of_gradient_descent_is_the_closed_form():
  tx = optax.sgd(0.1)
  state, metrics = jax.jit(step_lib.make_update(Linear(), tx, seed=0))(first_state(tx), BATCH)
  w = np.array([0.5, -1.0, 2.0])
  error = BATCH["x"] @ w - BATCH["y"]
  grad = BATCH["x"].T @ error / 16
  np.testing.assert_allclose(state.params["w"], w - 0.1 * grad, rtol=1e-5)
  np.testing.assert_allclose(metrics["training_loss"], np.mean(error**2) / 2, rtol=1e-6)
  np.testing.assert_allclose(metrics["l2_grads"], np.linalg.norm(grad), rtol=1e-5)
  np.testing.assert_allclose(metrics["l2_updates"], 0.1 * np.linalg.norm(grad), rtol=1e-5)
  np.testing.assert_allclose(metrics["error"], np.mean(np.abs(error)), rtol=1e-6)
  assert state.step == 1


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_accumulating_over_parts_gives_the_gradient_of_the_whole(parts):
  tx = optax.sgd(0.1)
  whole, m1 = step_lib.make_update(Linear(), tx, seed=0)(first_state(tx), BATCH)
  in_parts, m2 = step_lib.make_update(Linear(), tx, seed=0, accumulate=parts)(first_state(tx), BATCH)
  np.testing.assert_allclose(in_parts.params["w"], whole.params["w"], rtol=1e-5)
  np.testing.assert_allclose(m2["training_loss"], m1["training_loss"], rtol=1e-5)


@pytest.mark.parametrize("parts", [0, 3])
def test_parts_that_do_not_divide_the_batch_are_refused(parts):
  tx = optax.sgd(0.1)
  with pytest.raises(UserError, match="grad_accum_steps"):
    step_lib.make_update(Linear(), tx, seed=0, accumulate=parts)(first_state(tx), BATCH)


def test_a_step_on_eight_devices_is_the_step_on_one():
  tx = optax.adam(0.1)
  mesh = sharding.make_mesh()
  update = jax.jit(step_lib.make_update(Linear(), tx, seed=0, accumulate=2))
  one, _ = update(first_state(tx), BATCH)
  eight, _ = update(first_state(tx), jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data"))))
  np.testing.assert_allclose(eight.params["w"], one.params["w"], rtol=1e-5)


def test_a_task_may_bring_its_own_step():
  class Backwards(Linear):
    def update(self, state, batch, rng, tx):
      return state.replace(step=state.step - 1), {}

  tx = optax.sgd(0.1)
  state, _ = step_lib.make_update(Backwards(), tx, seed=0)(first_state(tx), BATCH)
  assert state.step == -1
