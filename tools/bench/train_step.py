"""A recipe's train step, compiled for the devices at hand: what the benchmarks time."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.state import Batch, TrainState
from core.tasks.task import Task
from core.training import state_init
from core.training.prepare import step_settings
from core.training.step import jitted_update

STEPS = 1_000  # The length of a training of which only a few steps are taken.
_LENGTHS = dict(total_steps=STEPS, batch_size=1, data_size=1)


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """A compiled step.

  Attributes:
    placement: where batches and state live.
    update: `(state, batch) -> (state, metrics)`; the new state takes the place of the old one.
  """

  placement: state_init.Placement
  update: jax.stages.Compiled

  @property
  def scratch(self) -> int:
    """Bytes on each device beside state and batch, as the compiler plans them."""
    return self.update.memory_analysis().temp_size_in_bytes

  def fresh_state(self, batch: Batch) -> TrainState:
    """Returns the state before the first step."""
    with self.placement.activations():
      return self.placement.fresh_state(batch)


def recipe_of(task: type[Task], batch_size: int, config: Mapping[str, Any]) -> Recipe:
  """Returns the recipe of a config that names no data: the benchmark makes its own batches."""
  data = dict(data=dict(source="digits", split="train"), batch_size=batch_size)
  return parse(task.Recipe, {"total_steps": STEPS, "input": data, **config})


def compile_step(
  task: Task,
  recipe: Recipe,
  batch: Mapping[str, Any],
  *,
  devices: Sequence[jax.Device] | None = None,
  lengths: Mapping[str, int] | None = None,
) -> TrainStep:
  """Returns a recipe's step.

  Args:
    task: made of the recipe.
    recipe: with SAM, an average and the like.
    batch: arrays or shapes.
    devices: by default all of this machine.
    lengths: see `core.training.state_init.place`.

  Raises:
    jax.errors.JaxRuntimeError: it does not fit the devices.
  """
  placement = state_init.place(task, recipe, batch, devices=devices, lengths=lengths or _LENGTHS)
  where = placement.batch_sharding
  shapes = {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for key, x in batch.items()}
  settings = step_settings(placement, total_steps=(lengths or _LENGTHS)["total_steps"])
  with placement.activations():
    update = jitted_update(task, placement.tx, placement.shapes, placement.mesh, **settings)
    return TrainStep(placement, update.lower(placement.shapes, shapes).compile())
