import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from core import sharding, trees
from core.errors import UserError
from core.optim import optimizer, sam
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.state import TrainState
from core.tasks.classification import Classification
from core.tasks.task import Task
from core.training import prepare, state_init
from core.training import step as step_lib

jax.config.update("jax_num_cpu_devices", 8)


class Linear(Task):
  """Least squares: its gradient is known in closed form."""

  def init(self, rng, batch):
    return {"params": {"w": jnp.zeros(batch["x"].shape[1])}}

  def loss(self, variables, batch, rng):
    error = batch["x"] @ variables["params"]["w"] - batch["y"]
    return jnp.mean(error**2) / 2, {"error": jnp.mean(jnp.abs(error))}

  @property
  def predict(self):
    return {}


RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(16, 3)).astype(np.float32), "y": RNG.normal(size=16).astype(np.float32)}


def first_state(tx):
  params = {"w": jnp.array([0.5, -1.0, 2.0])}
  return TrainState.create({"params": params}, tx.init(params))


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


def test_parts_that_do_not_divide_the_batch_are_refused():
  tx = optax.sgd(0.1)
  with pytest.raises(UserError, match="grad_accum_steps"):
    step_lib.make_update(Linear(), tx, seed=0, accumulate=3)(first_state(tx), BATCH)


def test_a_step_on_eight_devices_is_the_step_on_one():
  tx = optax.adam(0.1)
  mesh = sharding.make_mesh()
  update = jax.jit(step_lib.make_update(Linear(), tx, seed=0, accumulate=2))
  one, _ = update(first_state(tx), BATCH)
  eight, _ = update(first_state(tx), jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data"))))
  np.testing.assert_allclose(eight.params["w"], one.params["w"], rtol=1e-5)


# Sharpness-aware steps.


class TwoLayers(Task):
  """A net with dropout, so that the step's key matters."""

  def init(self, rng, batch):
    first, second = jax.random.normal(rng, (3, 8)), jax.random.normal(jax.random.fold_in(rng, 1), (8,))
    return {"params": {"first": first, "second": second}}

  def loss(self, variables, batch, rng):
    params = variables["params"]
    hidden = jnp.tanh(batch["x"] @ params["first"])
    hidden = hidden * jax.random.bernoulli(rng, 0.7, hidden.shape)
    return jnp.mean((hidden @ params["second"] - batch["y"]) ** 2), {}

  @property
  def predict(self):
    return {}


SIZES = dict(total_steps=10, batch_size=16, data_size=16)


def recipe(**changes):
  data = dict(data=dict(name="digits", split="train"), batch_size=16)
  return parse(Recipe, dict(total_steps=10, input=data, optax_name="identity", lr=0.1) | changes)


def sharp_steps(options, *, steps=1, devices=1, accumulate=1, task=None, **changes):
  """Returns state and metrics after some steps of a recipe, `sam` being its options, on so many devices."""
  task, mesh = task or TwoLayers(), sharding.make_mesh(devices=jax.devices()[:devices])
  placement = state_init.place(task, recipe(sam=options, **changes), BATCH, mesh=mesh, lengths=SIZES)
  batch = jax.device_put(BATCH, placement.batch_sharding)
  settings = {**prepare.step_settings(placement, total_steps=10), "accumulate": accumulate}
  update = jax.jit(step_lib.make_update(task, placement.tx, **settings))
  state = placement.fresh_state(batch)
  for _ in range(steps):
    state, metrics = update(state, batch)
  return jax.device_get(state), metrics


def same(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **(tolerance or dict(rtol=0))), a.params, b.params)


def test_rho_of_zero_is_plain_training_to_the_last_bit():
  plain, want = sharp_steps(None, steps=2)
  for options in (dict(rho=0.0), dict(rho_max=0.0, alpha=0.4, every=2)):
    found, metrics = sharp_steps(options, steps=2)
    same(found, plain)
    assert metrics == want


@pytest.mark.parametrize(
  "options",
  [dict(rho_max=0.1, rho_min=0.1, alpha=0.0), dict(rho=0.1, every=1), dict(rho=0.1, perturbation="per_device")],
  ids=str,
)
def test_what_reduces_to_sam_is_sam_to_the_last_bit(options):
  same(sharp_steps(options, steps=2)[0], sharp_steps(dict(rho=0.1), steps=2)[0])


@pytest.mark.parametrize("options", [dict(rho=0.1, alpha=0.3), dict(rho=0.1, adaptive=True, every=2)], ids=str)
def test_sharp_steps_on_eight_devices_and_in_parts_are_those_on_one(options):
  one, _ = sharp_steps(options, steps=3, task=Linear())
  fsdp = [(".*", "fsdp(min_size_to_shard_mb=0)")]
  same(sharp_steps(options, steps=3, task=Linear(), devices=8, sharding_strategy=fsdp)[0], one, atol=1e-5)
  same(sharp_steps(options, steps=3, task=Linear(), accumulate=4)[0], one, atol=1e-5)


def gradient(w, x, y):
  return x.T @ (x @ w - y) / len(y)


@pytest.mark.parametrize("parts", [1, 2])
def test_each_device_perturbs_by_its_own_part_of_the_batch(parts):
  task = Linear()
  found, metrics = sharp_steps(dict(rho=0.5, perturbation="per_device"), task=task, devices=4, accumulate=parts)
  # In double precision: the mean of the gradients that each quarter of the batch has where it is worst for it.
  w, x, y = np.zeros(3), BATCH["x"].astype(np.float64), BATCH["y"].astype(np.float64)
  sharp = []
  for quarter in np.split(np.arange(16), 4):
    there = gradient(w, x[quarter], y[quarter])
    sharp.append(gradient(w + 0.5 * there / np.linalg.norm(there), x[quarter], y[quarter]))
  np.testing.assert_allclose(found.params["w"], w - 0.1 * np.mean(sharp, axis=0), rtol=1e-5)
  np.testing.assert_allclose(metrics["training_loss"], np.mean(y**2) / 2, rtol=1e-5)


def test_per_device_perturbation_of_split_parameters_is_refused():
  options = dict(rho=0.1, perturbation="per_device")
  fsdp = [(".*", "fsdp(min_size_to_shard_mb=0)")]
  with pytest.raises(UserError, match=r"'per_device' needs all parameters whole on each device, .* splits first"):
    sharp_steps(options, devices=8, sharding_strategy=fsdp)


def test_frozen_parameters_stay_and_have_no_part_in_the_norm():
  class OnlyFirst(TwoLayers):
    def loss(self, variables, batch, rng):
      params = variables["params"]
      fixed = {**params, "second": jax.lax.stop_gradient(params["second"])}
      return super().loss({"params": fixed}, batch, rng)

  frozen, _ = sharp_steps(dict(rho=0.1, adaptive=True), steps=2, schedule=[("second", None), (".*", {})])
  without, _ = sharp_steps(dict(rho=0.1, adaptive=True), steps=2, task=OnlyFirst())
  same(frozen, without, rtol=1e-6)


def test_looksams_direction_is_sharded_as_its_parameter():
  split = recipe(sam=dict(rho=0.1, every=3), sharding_strategy=[(".*", "fsdp(min_size_to_shard_mb=0)")])
  shapes = state_init.place(TwoLayers(), split, BATCH, mesh=sharding.make_mesh()).shapes
  named = dict(trees.flatten_with_names(shapes.opt_state))
  kept = {name.rpartition("/")[2]: leaf for name, leaf in named.items() if "direction" in name}
  assert kept.keys() == {"first", "second"}
  for name, leaf in kept.items():
    assert not leaf.sharding.is_fully_replicated
    assert (leaf.shape, leaf.sharding) == (shapes.params[name].shape, shapes.params[name].sharding)


def test_a_step_between_two_of_looksams_has_no_second_pass():
  task = TwoLayers()
  variables, options = task.init(jax.random.key(0), BATCH), recipe(sam=dict(rho=0.1, every=3))
  tx, schedules = optimizer.make(options, variables["params"], sched_kw=SIZES)
  where = sharding.batch_sharding(sharding.make_mesh())
  found = sam.from_recipe(options, variables["params"], schedules, total_steps=10, batch_sharding=where)
  update = jax.make_jaxpr(step_lib.make_update(task, tx, seed=0, sam=found))
  (branches,) = [
    eqn.params["branches"]
    for eqn in update(TrainState.create(variables, tx.init(variables["params"])), BATCH).eqns
    if eqn.primitive.name == "cond"
  ]
  # The branch of a false predicate comes first. Its sums and products by element are no matrix product.
  assert ["dot_general" in str(branch) for branch in branches] == [False, True]


def test_a_sharp_step_costs_two_plain_ones():
  # All that a step may have besides its passes; without `every`, of which the compiler counts both branches.
  options, flops = dict(rho_max=0.6, rho_min=0.1, alpha=0.6, adaptive=True), {}
  for name, each in (("plain", None), ("sharp", options)):
    model = dict(width=32, depth=1, num_heads=1, patch_size=(8, 8), dropout=0.1)
    data = dict(data=dict(name="digits", split="train"), batch_size=64)
    config = dict(input=data, total_steps=10, model_name="vit", model=model, num_classes=10, mixup=dict(p=0.2))
    config |= dict(loss="softmax_xent", optax_name="identity", lr=0.1, sam=each)
    options = parse(Classification.Recipe, config)
    task = Classification(options)
    batch = {"image": jax.ShapeDtypeStruct((64, 64, 64, 3), jnp.float32)}
    batch["labels"] = jax.ShapeDtypeStruct((64, 10), jnp.float32)
    placement = state_init.place(task, options, batch, mesh=sharding.make_mesh(devices=jax.devices()[:1]))
    update = step_lib.make_update(task, placement.tx, **prepare.step_settings(placement, total_steps=10))
    shapes = placement.shapes
    flops[name] = jax.jit(update).lower(shapes, batch).compile().cost_analysis()["flops"]
  assert 1.9 < flops["sharp"] / flops["plain"] <= 2.05
