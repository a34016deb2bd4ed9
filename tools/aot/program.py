"""A project's real step, compiled ahead of time for devices that need not be there."""

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax

from core import sharding
from core.errors import UserError, nearest
from core.recipe.recipe import Recipe
from core.tasks.task import Task
from core.training.prepare import step_settings
from core.training.state_init import Placement, place
from core.training.step import jitted_update, make_update
from tools.aot import inputs, model_flops
from tools.aot.chips import Topology

STEPS = ("train", "eval")


class OutOfMemory(Exception):
  """The compiler found that the program does not fit; `needed` and `there` are bytes of a device, None if not told."""

  def __init__(self, message: str):
    super().__init__(message)
    self.needed, self.there = _sizes(message)


@dataclasses.dataclass(frozen=True)
class Step:
  """A step before it is compiled.

  Attributes:
    mesh: of the devices.
    state: shapes with shardings of the train state; for an evaluation of the variables.
    batch: likewise.
    lower: what traces it.
    model_flops: of the whole batch, see `tools.aot.model_flops`.
  """

  mesh: jax.sharding.Mesh
  state: Any
  batch: inputs.Shapes
  lower: Callable[[], jax.stages.Lowered]
  model_flops: Callable[[], int]

  @property
  def params(self) -> Any:
    """Returns the parameters' shapes."""
    return self.state["params"] if isinstance(self.state, dict) else self.state.params


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step, its program as XLA prints it, and the seconds that tracing and compiling took."""

  step: Step
  program: jax.stages.Compiled
  text: str
  lower_seconds: float
  compile_seconds: float


def make_step(
  task: type[Task],
  recipe: Recipe,
  topology: Topology,
  kind: str = "train",
  *,
  example: str | None = None,
  data_size: int,
) -> Step:
  """Returns the step of a recipe, as a run compiles it, or the prediction that its evaluators compile.

  Args:
    task: the project's.
    recipe: of a run.
    topology: the devices.
    kind: one of STEPS, or "eval:NAME" for another prediction than "predict".
    example: see `inputs.batch_shapes`.
    data_size: examples of the training data; only the schedule depends on it.

  Raises:
    UserError: whatever of the recipe does not fit the model or the devices.
  """
  batch = inputs.batch_shapes(recipe, example)
  known = dict(batch_size=recipe.input.batch_size, data_size=data_size)
  total = recipe.total.steps(**known)
  placement = place(task(recipe), recipe, batch, devices=topology.devices, lengths=dict(total_steps=total, **known))
  where = placement.batch_sharding
  sharding.check_batch_size(recipe.input.batch_size, where, "config.input.batch_size")
  batch = {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for key, x in batch.items()}
  if kind != "train":
    return _prediction(placement, kind, batch)
  return _training(placement, batch, total)


def _training(placement: Placement, batch: inputs.Shapes, total: int) -> Step:
  task, tx, state, mesh = placement.task, placement.tx, placement.shapes, placement.mesh
  settings, task = step_settings(placement, total_steps=total), task.in_form(task.form(1))

  def lower() -> jax.stages.Lowered:
    with placement.activations():
      return jitted_update(task, tx, state, mesh, **settings).lower(state, batch)

  def flops() -> int:
    with placement.activations():
      rng = jax.eval_shape(lambda: jax.random.key(0))
      # A loss in parts computes more than that of the whole batch, but only what it does again.
      parts = settings["accumulate"] if task.loss_in_parts is None else 1
      part = {key: jax.ShapeDtypeStruct(_part(x.shape, parts), x.dtype) for key, x in batch.items()}
      loss = model_flops.without_remat(task.loss, state.variables, part, rng)
      # As many where each device perturbs by its own part, whose program this loss was not traced for.
      sam = settings["sam"] and dataclasses.replace(settings["sam"], parts=None)
      alone = SimpleNamespace(loss=loss, loss_in_parts=None)
      return model_flops.count(make_update(alone, tx, **settings | dict(sam=sam, accumulate=parts)), state, batch)

  return Step(mesh, state, batch, lower, flops)


def _prediction(placement: Placement, kind: str, batch: inputs.Shapes) -> Step:
  predict, variables = placement.task.predict, placement.shapes.variables
  name = kind.partition(":")[2] or "predict"
  if not kind.startswith("eval") or name not in predict:
    raise UserError(f"--step: no step {kind!r}{nearest(kind, ['train', *(f'eval:{n}' for n in predict)])}")

  def outputs(variables: Any, batch: inputs.Shapes) -> list[jax.Array]:
    return jax.tree.leaves(predict[name](variables, batch)[:-1])

  def lower() -> jax.stages.Lowered:
    with placement.activations():
      return jax.jit(outputs, out_shardings=placement.batch_sharding).lower(variables, batch)

  def flops() -> int:
    with placement.activations():
      return model_flops.count(outputs, variables, batch)

  return Step(placement.mesh, variables, batch, lower, flops)


def compile_step(step: Step) -> Compiled:
  """Compiles it.

  Raises:
    OutOfMemory: the compiler found that it does not fit.
  """
  began = time.perf_counter()
  lowered = step.lower()
  traced = time.perf_counter()
  # The compiler prints the program itself: `as_text` cannot read back what a v5p does on its sparse cores.
  with tempfile.TemporaryDirectory() as folder:
    try:
      program = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      raise OutOfMemory(str(error)) from None
    compiled = time.perf_counter()
    (printed,) = Path(folder).glob("*after_optimizations.txt")
    return Compiled(step, program, printed.read_text(), traced - began, compiled - traced)


def _part(shape: Sequence[int], accumulate: int) -> tuple[int, ...]:
  return (shape[0] // accumulate, *shape[1:])


def _sizes(message: str) -> tuple[float | None, float | None]:
  """Returns the bytes that the compiler says are needed, of which temporaries are most, and bytes that it has."""
  match = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
  if not match:
    return None, None
  scale = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
  return float(match[1]) * 1024 ** scale[match[2]], float(match[3]) * 1024 ** scale[match[4]]
