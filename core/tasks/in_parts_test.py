"""Losses that compare the examples of a batch: in parts they are what they are of the whole batch, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core import sharding
from core.errors import UserError
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.state import TrainState
from core.tasks import contrastive_losses, in_parts
from core.tasks.contrastive import Contrastive
from core.tasks.task import Task
from core.testing import compilation
from core.training import prepare, state_init
from core.training.step import make_update

jax.config.update("jax_num_cpu_devices", 2)

TOWER = dict(width=8, depth=1, mlp_dim=8, num_heads=1)
IMAGE = dict(TOWER, patch_size=(4, 4), pool_type="gap")
MODEL = dict(image=IMAGE, text=dict(TOWER, vocab_size=16), out_dim=(8, 8), temperature_init=10.0, bias_init=-10.0)
TASKS = {
  "siglip": dict(model_name="two_towers", model=MODEL, loss="sigmoid"),
  "lit": dict(
    model_name="two_towers", model=MODEL | dict(bias_init=None), loss="softmax", schedule=[("img/.*", None), (".*", {})]
  ),
  "clippo": dict(model_name="one_tower", model=dict(image=IMAGE, out_dim=8, temperature_init=10.0), loss="softmax"),
}
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (64, 4, 4, 3)).astype(np.float32)
TOKENS = RNG.integers(1, 16, (64, 4)).astype(np.int32)

quick_compilation = compilation.quick(scope="function", autouse=False)


def make_task(**kw):
  data = dict(data=dict(name="digits", split="train"), batch_size=64)
  return Contrastive(parse(Contrastive.Recipe, dict(total_steps=1, optax_name="identity", lr=1.0, input=data) | kw))


def one_step(task, variables, batch, parts):
  """Returns the metrics of a step, and its gradient."""
  tx = optax.trace(decay=0.0)  # Its state is the gradient.
  state = TrainState.create(variables, tx.init(variables["params"]))
  new, metrics = jax.jit(make_update(task, tx, seed=0, accumulate=parts))(state, batch)
  return jax.device_get((metrics, new.opt_state.trace))


@functools.cache
def of_the_whole(name):
  """Returns a task's fresh variables, a batch, and its step on that without parts."""
  task = make_task(**TASKS[name])
  batch = {"image": IMAGES, "labels": IMAGES[::-1] if name == "clippo" else TOKENS}
  variables = jax.device_get(jax.jit(task.init)(jax.random.key(0), batch))
  return variables, batch, one_step(task, variables, batch, 1)


def assert_same(found, wanted, tolerance=1e-6):
  """Asserts that trees are equal, but for what is small beside the largest number of all."""
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
  bounds = dict(rtol=tolerance, atol=tolerance * largest)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **bounds), found, wanted)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name, parts", [("siglip", 8), ("lit", 4), ("clippo", 64)])
def test_a_step_in_parts_is_that_of_the_whole_batch(name, parts):
  variables, batch, (wanted, whole) = of_the_whole(name)
  metrics, gradient = one_step(make_task(**TASKS[name]), variables, batch, parts)
  assert_same(gradient, whole)
  for key in wanted:
    assert_same(metrics[key], wanted[key])
  assert np.abs(gradient["img"]["head"]["kernel"]).max() > 0.1 or name == "lit"
  if name == "siglip":
    # Of 8 parts by themselves, each with the 8 texts of its own, the mean loss is 11.00.
    np.testing.assert_allclose(metrics["training_loss"], 11.30, atol=0.01)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("form", contrastive_losses.FORMS)
def test_every_form_of_the_loss_is_the_same_in_parts_on_several_devices(form):
  variables, batch, (wanted, whole) = of_the_whole("siglip")
  where = sharding.batch_sharding(sharding.make_mesh())
  variables = jax.device_put(variables, sharding.replicated(where.mesh))
  task = make_task(**TASKS["siglip"], loss_form=form, mesh=[("data", 2)])
  metrics, gradient = one_step(task, variables, jax.device_put(batch, where), 4)
  # Devices and chunks add up in another order.
  assert_same(gradient, whole, 2e-6)
  for key in wanted:
    assert_same(metrics[key], wanted[key], 2e-6)


def test_a_step_in_eight_parts_takes_the_memory_of_one_part():
  tower = dict(width=32, depth=2, num_heads=2)
  model = dict(MODEL, image=dict(tower, patch_size=(4, 4), pool_type="gap"), text=dict(tower, vocab_size=16))
  task = make_task(**TASKS["siglip"] | dict(model=model))
  images, tokens = jax.ShapeDtypeStruct((64, 32, 32, 3), "float32"), jax.ShapeDtypeStruct((64, 16), "int32")
  batch = {"image": images, "labels": tokens}
  tx = optax.sgd(1.0)
  variables = jax.eval_shape(task.init, jax.random.key(0), batch)
  state = jax.eval_shape(lambda variables: TrainState.create(variables, tx.init(variables["params"])), variables)
  memory = {}
  for parts in (1, 8):
    step = jax.jit(make_update(task, tx, seed=0, accumulate=parts)).lower(state, batch).compile()
    memory[parts] = step.memory_analysis().temp_size_in_bytes
  # Besides an eighth of the activations, the parts of the batch lie in memory as a copy, and the gradient twice.
  assert memory[8] < memory[1] / 5


class Neighbours(Task):
  """A loss of all pairs of a batch, by one layer with dropout whose collections hold what it has seen."""

  def __init__(self, dropout=0.0):
    self._keep = 1 - dropout

  def init(self, rng, batch):
    seen = {"mean": jnp.zeros(3), "passes": jnp.zeros((), jnp.int32)}
    return {"params": {"w": jax.random.normal(rng, (3, 4))}, "seen": seen}

  def embed(self, variables, batch, rng):
    z = jnp.tanh(batch["x"] @ variables["params"]["w"])
    z = z * jax.random.bernoulli(rng, self._keep, z.shape) / self._keep
    seen = variables["seen"]
    return z, {"seen": {"mean": 0.9 * seen["mean"] + 0.1 * batch["x"].mean(0), "passes": seen["passes"] + 1}}

  def of_all(self, z, y):
    distances = jnp.sum((z[:, None] - z) ** 2, axis=2)
    return jnp.mean(jnp.where(y[:, None] == y, distances, jnp.exp(-distances)))

  def loss(self, variables, batch, rng):
    return self.loss_in_parts(variables, batch, rng, 1)

  def loss_in_parts(self, variables, batch, rng, parts):
    z, updated = in_parts.embedded(self.embed, variables, batch, rng, parts)
    return self.of_all(z, batch["y"]), {"total": jnp.sum(z)}, updated

  @property
  def predict(self):
    return {}


NUMBERS = {"x": RNG.normal(size=(16, 3)).astype(np.float32), "y": RNG.integers(0, 3, 16).astype(np.int32)}


def sharp_steps(options, accumulate):
  """Returns state and metrics after three steps on the neighbours, with `options` of SAM."""
  data = dict(data=dict(name="digits", split="train"), batch_size=16)
  recipe = parse(Recipe, dict(total_steps=10, input=data, optax_name="identity", lr=0.1, sam=options))
  task, mesh = Neighbours(), sharding.make_mesh()
  lengths = dict(total_steps=10, batch_size=16, data_size=16)
  placement = state_init.place(task, recipe, NUMBERS, mesh=mesh, lengths=lengths)
  batch = jax.device_put(NUMBERS, placement.batch_sharding)
  settings = {**prepare.step_settings(placement, total_steps=10), "accumulate": accumulate}
  update = jax.jit(make_update(task, placement.tx, **settings))
  state = placement.fresh_state(batch)
  for _ in range(3):
    state, metrics = update(state, batch)
  return jax.device_get((state, metrics))


@pytest.mark.parametrize(
  "options",
  [None, dict(rho=0.1), dict(rho_max=0.1, rho_min=0.1, alpha=0.4), dict(rho=0.1, every=2)],
  ids=["plain", "SAM", "GSAM", "LookSAM"],
)
def test_sharp_steps_and_other_variables_are_those_of_the_whole_batch(options):
  (found, metrics), (wanted, whole) = (sharp_steps(options, accumulate=n) for n in (4, 1))
  assert_same(found, wanted)
  assert_same(metrics, whole)
  # Each part starts from the step's own collections, and their mean is kept: three steps, as many passes.
  assert found.collections["seen"]["passes"] == 3
  np.testing.assert_allclose(found.collections["seen"]["mean"], (1 - 0.9**3) * NUMBERS["x"].mean(0), rtol=1e-5)


def test_both_passes_of_a_part_draw_the_same_dropout():
  task, rng = Neighbours(dropout=0.5), jax.random.key(1)
  variables = task.init(jax.random.key(0), NUMBERS)

  def with_all_activations(variables):
    """Embeds each part once, and keeps what its backward pass needs."""
    keys = jax.random.split(rng, 4)
    z = [task.embed(variables, {"x": NUMBERS["x"][part::4]}, keys[part])[0] for part in range(4)]
    return task.of_all(jnp.concatenate(z), np.concatenate([NUMBERS["y"][part::4] for part in range(4)]))

  def trained(loss):
    return jax.value_and_grad(lambda params: loss({**variables, "params": params}))(variables["params"])

  found = trained(lambda variables: task.loss_in_parts(variables, NUMBERS, rng, 4)[0])
  wanted = trained(with_all_activations)
  assert abs(wanted[0] - task.loss(variables, NUMBERS, rng)[0]) > 1e-3
  assert_same(found, wanted)


def test_parts_that_do_not_divide_the_batch_are_refused():
  task = Neighbours()
  variables = task.init(jax.random.key(0), NUMBERS)
  with pytest.raises(UserError, match=r"config.grad_accum_steps: a batch of 16 cannot be split into 5 equal parts"):
    task.loss_in_parts(variables, NUMBERS, jax.random.key(0), 5)
