"""Clipping of each example's gradient: NumPy's in double precision, whatever the devices and the parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import sharding
from core.errors import UserError
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.recipe.tasks import Classification, Contrastive
from core.tasks.task import Task
from core.training import prepare, state_init
from core.training import step as step_lib

jax.config.update("jax_num_cpu_devices", 8)

RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(16, 3)).astype(np.float32), "y": 3 * RNG.normal(size=16).astype(np.float32)}
START = {"w": np.array([0.5, -1.0, 2.0], np.float32), "b": np.array(0.25, np.float32)}


class Linear(Task):
  """Least squares with a bias: the gradient of an example is its error times (x, 1)."""

  def init(self, rng, batch):
    return {"params": {key: jnp.asarray(value) for key, value in START.items()}}

  def loss(self, variables, batch, rng):
    params = variables["params"]
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return jnp.mean(error**2) / 2, {"error": jnp.mean(jnp.abs(error))}

  @property
  def predict(self):
    return {}


class WithStatistics(Linear):
  def init(self, rng, batch):
    return {**super().init(rng, batch), "batch_stats": {"mean": jnp.zeros(3)}}


def config(**changes):
  data = dict(data=dict(name="digits", split="train"), batch_size=16)
  return dict(total_steps=10, input=data, optax_name="identity", lr=0.1) | changes


def stepped(task=None, devices=1, **changes):
  """State and metrics after a step."""
  recipe, task = parse(Recipe, config(**changes)), task or Linear()
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  lengths = dict(total_steps=10, batch_size=16, data_size=16)
  placement = state_init.place(task, recipe, BATCH, mesh=mesh, lengths=lengths)
  batch = jax.device_put(BATCH, placement.batch_sharding)
  settings = prepare.step_settings(placement, total_steps=10)
  update = jax.jit(step_lib.make_update(task, placement.tx, **settings))
  return jax.device_get(update(placement.fresh_state(batch), batch))


def of_each(frozen=()):
  """The gradient of each example, [16, 4], and its norm over what trains."""
  x, y = BATCH["x"].astype(np.float64), BATCH["y"].astype(np.float64)
  error = x @ START["w"].astype(np.float64) + START["b"] - y
  grads = error[:, None] * np.concatenate([x, np.ones((16, 1))], axis=1)
  return grads, np.linalg.norm(grads[:, [not ("b" in frozen and i == 3) for i in range(4)]], axis=1)


@pytest.mark.parametrize("devices, parts", [(1, 1), (8, 1), (1, 4), (8, 2)])
def test_a_step_descends_by_the_mean_of_the_clipped_gradients(devices, parts):
  grads, norms = of_each()
  limit = float(np.median(norms))
  state, metrics = stepped(devices=devices, grad_clip_norm=limit, grad_clip_per_example=True, grad_accum_steps=parts)
  mean = (grads * np.minimum(1, limit / norms)[:, None]).mean(axis=0)
  np.testing.assert_allclose(state.params["w"], START["w"] - 0.1 * mean[:3], rtol=1e-5)
  np.testing.assert_allclose(state.params["b"], START["b"] - 0.1 * mean[3], rtol=1e-5)
  np.testing.assert_allclose(metrics["l2_grads"], np.linalg.norm(mean), rtol=1e-5)
  np.testing.assert_allclose(metrics["training_loss"], np.mean(grads[:, 3] ** 2) / 2, rtol=1e-5)
  # Clipping the mean itself would not have touched it: the mean of vectors is no longer than the longest.
  assert np.linalg.norm(grads.mean(axis=0)) < limit < norms.max()


def test_a_norm_that_no_example_reaches_changes_nothing():
  clipped, _ = stepped(grad_clip_norm=1e6, grad_clip_per_example=True)
  plain, _ = stepped()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), clipped.params, plain.params)


def test_frozen_parameters_stay_and_have_no_part_in_the_norm():
  grads, norms = of_each(frozen=("b",))
  limit = float(np.median(norms))
  options = dict(grad_clip_norm=limit, grad_clip_per_example=True, schedule=[("b", None), (".*", {})])
  state, _ = stepped(**options)
  mean = (grads[:, :3] * np.minimum(1, limit / norms)[:, None]).mean(axis=0)
  np.testing.assert_allclose(state.params["w"], START["w"] - 0.1 * mean, rtol=1e-5)
  assert state.params["b"] == START["b"]


def test_each_example_draws_by_a_key_of_its_own():
  class Noisy(Linear):
    def loss(self, variables, batch, rng):
      loss, _ = super().loss(variables, batch, rng)
      noise = jax.random.uniform(rng)
      return loss, {"noise": noise, "square": noise**2}

  _, metrics = stepped(task=Noisy(), grad_clip_norm=1.0, grad_clip_per_example=True)
  assert metrics["square"] - metrics["noise"] ** 2 > 0.01


def test_variables_that_a_batch_updates_are_refused():
  with pytest.raises(UserError, match=r"^config\.grad_clip_per_example does not go with batch_stats/mean, which"):
    stepped(task=WithStatistics(), grad_clip_norm=1.0, grad_clip_per_example=True)


@pytest.mark.parametrize(
  "kind, changes, line",
  [
    (Recipe, dict(grad_clip_norm=None), "needs grad_clip_norm, the largest norm of an example's gradient"),
    (Recipe, dict(grad_clip_norm=0), "needs grad_clip_norm"),
    (Recipe, dict(sam=dict(rho=0.1)), "does not go with sam, which takes the examples of a batch together"),
    (
      Classification,
      dict(mixup=dict(p=0.2), model_name="vit", model=dict(variant="Ti/16"), num_classes=10, loss="softmax_xent"),
      "does not go with mixup, which takes the examples of a batch together",
    ),
    (
      Contrastive,
      dict(
        loss="sigmoid",
        model_name="two_towers",
        model=dict(image=dict(variant="Ti/16"), text=dict(variant="Ti"), out_dim=8),
      ),
      "does not go with a contrastive loss, which compares the examples of a batch",
    ),
  ],
)
def test_what_takes_the_examples_of_a_batch_together_is_refused(kind, changes, line):
  with pytest.raises(UserError) as error:
    parse(kind, config(**{"grad_clip_norm": 1.0, "grad_clip_per_example": True} | changes))
  assert str(error.value).startswith(f"config.grad_clip_per_example {line}")
