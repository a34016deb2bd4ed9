"""The train state before the first step: its shapes and where they are to live, then its values."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from core import sharding
from core.optim import ema, optimizer
from core.state import Batch, Params, TrainState, step_rng
from core.tasks.task import Task


def make_mesh(
  task: Task, config: ConfigDict, batch: Mapping[str, Any], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """The mesh of `config.mesh`; for "auto", the default, of the sizes that suit the model, its optimizer and the batch.

  Args:
    task: the project's idea.
    config: of the run.
    batch: an input of the model, or its shapes; one process's part is enough.
    devices: defaults to all of all processes.

  Raises:
    UserError: the mesh does not fit the devices, or whatever of the config does not fit the model.
  """
  axes = config.get("mesh", sharding.AUTO)
  devices = jax.devices() if devices is None else devices
  if axes == sharding.AUTO:
    batch = {key: x for key, x in batch.items() if x.dtype.kind in "biuf"}
    state = abstract_without_schedules(task, config, sharding.make_mesh(devices=devices[:1]), batch)
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    axes = sharding.auto_axes(state.params, state_bytes, config.input.batch_size, len(devices), slices)
  return sharding.make_mesh(axes, devices)


def abstract_state(
  task: Task, config: ConfigDict, sched_kw: Mapping[str, Any], mesh: jax.sharding.Mesh, batch: Batch
) -> tuple[TrainState, optax.GradientTransformation, list[Callable]]:
  """The train state as shapes with shardings, the optimizer, and its schedules.

  Args:
    task: the project's idea.
    config: read for the optimizer and `sharding_strategy`.
    sched_kw: total_steps, batch_size and data_size of the schedules; the shapes do not depend on them.
    mesh: the devices.
    batch: an input of the model, or its shapes.

  Raises:
    UserError: whatever of the config does not fit the model.
  """
  with_sharding = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  params = jax.eval_shape(_init(task, sharding.held_batch()), jax.random.key(0), batch)
  of_params = sharding.params_shardings(params, mesh, config.get("sharding_strategy", ()))
  params = jax.tree.map(with_sharding, params, of_params)
  tx, schedules = optimizer.make(config, params, sched_kw=sched_kw)
  state = jax.eval_shape(lambda params: TrainState.create(params, tx.init(params)), params)
  of_state = ema.shardings(config, sharding.follow_params(state, params, of_params), state)
  return jax.tree.map(with_sharding, state, of_state), tx, schedules


def abstract_without_schedules(task: Task, config: ConfigDict, mesh: jax.sharding.Mesh, batch: Batch) -> TrainState:
  """`abstract_state`'s shapes for a program that does not train: they do not depend on the schedules."""
  endless = dict(total_steps=10**9, batch_size=1, data_size=1)  # Whatever a schedule says happens in it.
  shapes, _, _ = abstract_state(task, config, endless, mesh, batch)
  return shapes


def fresh_state(
  task: Task, config: ConfigDict, shapes: TrainState, tx: optax.GradientTransformation, batch: Batch
) -> TrainState:
  """The state before the first step, each array made where it is to live."""
  params = fresh_params(task, config, shapes.params, batch)
  where = jax.tree.map(lambda x: x.sharding, shapes)
  return jax.jit(lambda params: TrainState.create(params, tx.init(params)), out_shardings=where, donate_argnums=0)(
    params
  )


def fresh_params(task: Task, config: ConfigDict, shapes: Params, batch: Batch) -> Params:
  """The parameters before the first step: random ones by the config's seed, then those that the task loads."""
  where = jax.tree.map(lambda x: x.sharding, shapes)
  init = jax.jit(_init(task, sharding.held_batch()), out_shardings=where)
  params = init(step_rng(config.get("seed", 0), 0, stream=1), batch)
  return params if task.load is None else jax.device_put(task.load(sharding.to_host(params)), where)


@functools.lru_cache(maxsize=8)
def _init(task: Task, held: jax.sharding.NamedSharding | None) -> Callable[[jax.Array, Batch], Params]:
  """One function for the shapes and the values, of which JAX keeps the trace; it does not know what that holds to."""
  return lambda rng, batch: task.init(rng, batch)["params"]
