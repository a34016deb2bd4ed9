"""The train state before the first step: its shapes and where they are to live, then its values."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import optax
from jaxtyping import Array, Key

from core import sharding
from core.optim import ema, optimizer
from core.optim.schedule import Schedule
from core.recipe.recipe import Recipe
from core.state import Batch, TrainState, Variables, step_rng
from core.tasks.task import Task

# Lengths for a program that does not train: whatever a schedule says happens within them.
ENDLESS = dict(total_steps=10**9, batch_size=1, data_size=1)


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where a task's batches and its state live, and the optimizer: known by shapes, before anything is computed.

  Attributes:
    task: the project's idea.
    recipe: of the run.
    mesh: the devices.
    batch_sharding: how a batch lies on them.
    shapes: the train state as `jax.ShapeDtypeStruct`s with shardings.
    tx: the optimizer.
    schedules: its schedules, one a rule that trains.
  """

  task: Task
  recipe: Recipe
  mesh: jax.sharding.Mesh
  batch_sharding: jax.sharding.NamedSharding
  shapes: TrainState
  tx: optax.GradientTransformation
  schedules: Sequence[Schedule]

  @contextmanager
  def activations(self) -> Iterator[None]:
    """Gives a context in which models hold their activations to the mesh; whatever is traced must be traced in it."""
    with sharding.activations(self.mesh, self.recipe.sharding_rules):
      yield

  def fresh_variables(self, batch: Batch, task: Task | None = None) -> Variables:
    """Returns the variables before the first step: random ones by the recipe's seed, then those that the task loads.

    Args:
      batch: an input of the model.
      task: the same one with other weights to load; `self.task` if None.

    Raises:
      UserError: the weights cannot be read or do not fit.
    """
    task = task or self.task
    where = jax.tree.map(lambda x: x.sharding, self.shapes.variables)
    init = jax.jit(_init(self.task, sharding.held_batch()), out_shardings=where)
    variables = init(step_rng(self.recipe.seed, 0, stream=1), batch)
    return variables if task.load is None else jax.device_put(task.load(sharding.to_host(variables)), where)

  def fresh_state(self, batch: Batch) -> TrainState:
    """Returns the state before the first step, each array made where it is to live."""
    variables = self.fresh_variables(batch)
    where = jax.tree.map(lambda x: x.sharding, self.shapes)

    def create(variables: Variables) -> TrainState:
      return TrainState.create(variables, self.tx.init(variables["params"]))

    return jax.jit(create, out_shardings=where, donate_argnums=0)(variables)


def place(
  task: Task,
  recipe: Recipe,
  batch: Mapping[str, Any],
  *,
  mesh: jax.sharding.Mesh | None = None,
  devices: Sequence[jax.Device] | None = None,
  lengths: Mapping[str, int] | None = None,
) -> Placement:
  """Returns where a task's batches and state live.

  Args:
    task: the project's idea.
    recipe: of the run.
    batch: an input of the model, or its shapes; one process's part is enough.
    mesh: by default that of `recipe.mesh` on `devices`.
    devices: by default all of all processes.
    lengths: total_steps, batch_size and data_size of the schedules; by default such as for a program that does not
      train. The shapes do not depend on them.

  Raises:
    UserError: the mesh does not fit the devices or the batch, or whatever of the recipe does not fit the model.
  """
  mesh = make_mesh(task, recipe, batch, devices) if mesh is None else mesh
  where = sharding.batch_sharding(mesh, recipe.sharding_rules)
  with sharding.activations(mesh, recipe.sharding_rules):
    shapes, tx, schedules = _abstract_state(task, recipe, lengths or ENDLESS, mesh, batch)
  return Placement(task, recipe, mesh, where, shapes, tx, schedules)


def make_mesh(
  task: Task, recipe: Recipe, batch: Mapping[str, Any], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Returns the mesh of `recipe.mesh`; for "auto" of the sizes that suit the model, its optimizer and the batch.

  Raises:
    UserError: the mesh does not fit the devices, or whatever of the recipe does not fit the model.
  """
  devices = jax.devices() if devices is None else devices
  if recipe.mesh != sharding.AUTO or len(devices) == 1:  # One device leaves nothing to choose.
    return sharding.make_mesh(recipe.mesh, devices)
  alone = sharding.make_mesh(devices=devices[:1])
  state, _, _ = _abstract_state(task, recipe, ENDLESS, alone, batch)
  state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  axes = sharding.auto_axes(state.params, state_bytes, recipe.input.batch_size, len(devices), slices)
  return sharding.make_mesh(axes, devices)


def _abstract_state(
  task: Task, recipe: Recipe, lengths: Mapping[str, int], mesh: jax.sharding.Mesh, batch: Mapping[str, Any]
) -> tuple[TrainState, optax.GradientTransformation, Sequence[Schedule]]:
  batch = {key: x for key, x in batch.items() if x.dtype.kind in "biufV"}
  variables = jax.eval_shape(_init(task, sharding.held_batch()), jax.random.key(0), batch)
  # Collections stand beside the parameters' own names: a rule may say `batch_stats/.*`.
  named = {**variables["params"], **{name: tree for name, tree in variables.items() if name != "params"}}
  of_named = sharding.params_shardings(named, mesh, recipe.sharding_strategy)
  named = jax.tree.map(_with_sharding, named, of_named)
  params, of_params = ({key: tree[key] for key in variables["params"]} for tree in (named, of_named))
  tx, schedules = optimizer.make(recipe, params, sched_kw=lengths, seed=recipe.seed, frozen=task.frozen)
  variables = {"params": params, **{name: named[name] for name in variables if name != "params"}}
  state = jax.eval_shape(lambda variables: TrainState.create(variables, tx.init(variables["params"])), variables)
  of_state = sharding.follow_params(dataclasses.replace(state, collections={}), params, of_params)
  of_state = dataclasses.replace(of_state, collections={name: of_named[name] for name in state.collections})
  of_state = ema.shardings(recipe.ema, of_state, state)
  return jax.tree.map(_with_sharding, state, of_state), tx, schedules


def _with_sharding(x: Any, where: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


@functools.lru_cache(maxsize=8)
def _init(task: Task, held: jax.sharding.NamedSharding | None) -> Callable[[Key[Array, ""], Batch], Variables]:
  """Returns one function for the shapes and the values, whose trace JAX keeps; it does not know what `held` is."""

  def init(rng: Key[Array, ""], batch: Batch) -> Variables:
    return dict(task.init(rng, batch))

  return init
