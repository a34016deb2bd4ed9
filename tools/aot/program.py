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
from ml_collections import ConfigDict

from core import durations, sharding
from core.errors import UserError, nearest
from core.optim import sam
from core.tasks.task import Task
from core.training import state_init
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
    state: shapes with shardings of the train state; for an evaluation of the parameters.
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
    return getattr(self.state, "params", self.state)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step, its program as XLA prints it, and the seconds that tracing and compiling took."""

  step: Step
  program: jax.stages.Compiled
  text: str
  lower_seconds: float
  compile_seconds: float


def make_step(
  make_task: Callable[[ConfigDict], Task],
  config: ConfigDict,
  topology: Topology,
  kind: str = "train",
  *,
  example: str | None = None,
  data_size: int,
) -> Step:
  """The step of a config, as `core.training.loop` compiles it, or the prediction that its evaluators compile.

  Args:
    make_task: the project's.
    config: of a run.
    topology: the devices.
    kind: one of STEPS, or "eval:NAME" for another prediction than "predict".
    example: see `inputs.batch_shapes`.
    data_size: examples of the training data; only the schedule depends on it.

  Raises:
    UserError: whatever of the config does not fit the model or the devices.
  """
  task, rules = make_task(config), config.get("sharding_rules", ())
  batch = inputs.batch_shapes(config, example)
  mesh = state_init.make_mesh(task, config, batch, topology.devices)
  where = sharding.batch_sharding(mesh, rules)
  sharding.check_batch_size(config.input.batch_size, where, "config.input.batch_size")
  batch = {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for key, x in batch.items()}
  with sharding.activations(mesh, rules):
    known = dict(batch_size=config.input.batch_size, data_size=data_size)
    total = durations.steps("total", config, **known) or 1
    state, tx, schedules = state_init.abstract_state(task, config, dict(total_steps=total, **known), mesh, batch)
  if kind != "train":
    return _prediction(task, kind, mesh, rules, state.params, batch)
  sharp = sam.from_config(config, state.params, schedules, total_steps=total, batch_sharding=where)
  task = task.in_form(task.form(1))
  settings = dict(seed=config.get("seed", 0), accumulate=config.get("grad_accum_steps", 1), sam=sharp)

  def lower() -> jax.stages.Lowered:
    with sharding.activations(mesh, rules):
      return jitted_update(task, tx, state, mesh, **settings).lower(state, batch)

  def flops() -> int:
    with sharding.activations(mesh, rules):
      rng = jax.eval_shape(lambda: jax.random.key(0))
      part = {key: jax.ShapeDtypeStruct(_part(x.shape, settings["accumulate"]), x.dtype) for key, x in batch.items()}
      loss = model_flops.without_remat(task.loss, state.params, part, rng)
      plain = SimpleNamespace(loss=loss)
      # As many where each device perturbs by its own part, whose program this loss was not traced for.
      whole = settings | dict(sam=sharp and dataclasses.replace(sharp, parts=None))
      return model_flops.count(make_update(plain, tx, **whole), state, batch)

  return Step(mesh, state, batch, lower, flops)


def _prediction(
  task: Task, kind: str, mesh: jax.sharding.Mesh, rules: Sequence[Any], params: Any, batch: inputs.Shapes
) -> Step:
  name = kind.partition(":")[2] or "predict"
  if not kind.startswith("eval") or name not in task.predict:
    raise UserError(f"--step: no step {kind!r}{nearest(kind, ['train', *(f'eval:{n}' for n in task.predict)])}")
  fn = lambda params, batch: jax.tree.leaves(task.predict[name](params, batch)[:-1])

  def lower() -> jax.stages.Lowered:
    with sharding.activations(mesh, rules):
      return jax.jit(fn, out_shardings=next(iter(batch.values())).sharding).lower(params, batch)

  def flops() -> int:
    with sharding.activations(mesh, rules):
      return model_flops.count(fn, params, batch)

  return Step(mesh, params, batch, lower, flops)


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
  """Bytes that the compiler says are needed, of which temporaries are most, and bytes that it has."""
  match = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
  if not match:
    return None, None
  scale = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
  return float(match[1]) * 1024 ** scale[match[2]], float(match[3]) * 1024 ** scale[match[4]]
