"""A run before its first step: everything that can be refused is refused here, and everything is compiled."""

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from core import files, sharding
from core.checkpoint import state as checkpoints
from core.checkpoint.state import Checkpoints
from core.data import feed, pipeline
from core.errors import UserError
from core.evaluators import registry as evaluators
from core.optim import ema, per_example, sam
from core.recipe.recipe import Recipe
from core.recipe.write import to_config
from core.state import Batch, Params, Predict, TrainState
from core.tasks.task import Task
from core.training import introduction, metrics, progress, provenance, state_init, workdir_lock
from core.training.compiled_steps import CompiledSteps
from core.training.plan import EMA, Plan
from core.training.step import jitted_update


@dataclasses.dataclass(frozen=True)
class Run:
  """A prepared run; `core.training.loop.train` takes it to its end. Close it, or use it in a `with`.

  Attributes:
    name: of the project and its config, for people.
    project: whose trainer this is.
    workdir: where everything lies that the run leaves behind.
    plan: when things happen.
    placement: the task, the recipe, the mesh, and the state's shapes on it.
    data: the training input.
    batches: the same on the devices, from the first step's on.
    start: steps that were taken before.
    state: after them. The first step takes its memory.
    evaluators: by name; those of the parameters' average are the same ones by another name.
    average: `(opt_state, params) -> ` the average of the parameters.
    steps: the compiled steps.
    saved: the checkpoints.
    lock: of the workdir; None in processes other than the first.
    log: metrics.jsonl.
    progress: what a person sees.
    closing: what is closed with the run.
  """

  name: str
  project: str
  workdir: Path
  plan: Plan
  placement: state_init.Placement
  data: pipeline.TrainInput
  batches: Iterator[Batch]
  start: int
  state: TrainState
  evaluators: Mapping[str, Any]
  average: Callable[[Any, Params], Params]
  steps: CompiledSteps
  saved: Checkpoints
  lock: workdir_lock.WorkdirLock | None
  log: metrics.MetricsLog
  progress: progress.Progress
  closing: contextlib.ExitStack

  @property
  def recipe(self) -> Recipe:
    """The hyper-parameters."""
    return self.placement.recipe

  def __enter__(self) -> "Run":
    return self

  def __exit__(self, *error: object) -> None:
    self.closing.__exit__(*error)


def prepare(task: Task, recipe: Recipe, workdir: Path, *, project: str = "", name: str = "") -> Run:
  """Returns a run that is ready for its first step, or for the one after its newest checkpoint, and claims `workdir`.

  Args:
    task: the project's idea.
    recipe: the hyper-parameters.
    workdir: where everything the run leaves behind lies, and where a stopped run is found again.
    project: whose trainer this is, for the run's first line and its record.
    name: of the config, likewise.

  Raises:
    UserError: a mistake in the config, data, weights or checkpoint.
  """
  with contextlib.ExitStack() as closing:
    config = to_config(recipe)
    provenance.check_workdir(workdir, config, type(recipe))
    lock = closing.enter_context(workdir_lock.held(workdir, first=jax.process_index() == 0))
    plan = Plan.of(recipe, pipeline.dataset_size(recipe.input))
    saved = Checkpoints(workdir / "checkpoints", keep_every=plan.keep_ckpt, warn=_warn)
    closing.callback(saved.close)
    start, checkpoint = _where_to_start(saved, recipe, plan)
    data, batches, batch, placement = _open_input(task, recipe, plan, start, closing)
    evals = make_evaluators(
      recipe, task.predict, batch_sharding=placement.batch_sharding, output_dir=workdir / "evals", average=True
    )
    restored = checkpoints.restore(checkpoint, placement.shapes) if checkpoint else None
    began = time.perf_counter()
    steps = _compile(placement, plan, batch, start, closing)  # In the background: nothing that follows needs it yet.
    state = restored or placement.fresh_state(batch)
    check_evaluators(evals, placement)

    title = f"{project} {name}".strip()
    show = _progress(recipe, plan, start, data.num_examples, closing)
    show.say(introduction.lines(title, placement, plan, data.num_examples, workdir, start))
    if plan.total:
      _wait_for(steps, show, began)

    # From here on the workdir is this run's: all that could be refused has been.
    log = _claim(workdir, config, project, start, closing)
    return Run(
      name=title,
      project=project,
      workdir=workdir,
      plan=plan,
      placement=placement,
      data=data,
      batches=itertools.chain([batch], batches),
      start=start,
      state=state,
      evaluators=evals,
      average=_average(placement),
      steps=steps,
      saved=saved,
      lock=lock,
      log=log,
      progress=show,
      closing=closing.pop_all(),
    )


def make_evaluators(
  recipe: Recipe,
  predict: Mapping[str, Predict],
  *,
  batch_sharding: jax.sharding.NamedSharding,
  output_dir: Path,
  names: Sequence[str] | None = None,
  average: bool = False,
) -> dict[str, Any]:
  """Returns the evaluators of a recipe by name.

  Args:
    recipe: `evals` is read, and `input.batch_size` for those that give none.
    predict: the task's predictions; one mapping for all, so that evaluators of one prediction share its program.
    batch_sharding: how a batch lies on the devices.
    output_dir: where evaluators that write files do so.
    names: which of them; all by default.
    average: also those of the parameters' average, by `NAME_ema`, where the recipe keeps one.

  Raises:
    UserError: whatever is wrong with one of them.
  """

  def make(name: str, options: Any) -> Any:
    where = dict(sharding=batch_sharding, output_dir=output_dir, batch_size=recipe.input.batch_size)
    return evaluators.make(name, options, predict=predict, **where)

  options = {name: recipe.evals[name] for name in (recipe.evals if names is None else names)}
  found = {name: make(name, each) for name, each in options.items()}
  if average and recipe.ema:
    found |= {name + EMA: make(name + EMA, each) for name, each in options.items()}
  return found


def check_evaluators(evals: Mapping[str, Any], placement: state_init.Placement) -> None:
  """Refuses what the first evaluation would; those of an average read the same data by the same programs.

  Raises:
    UserError: as the evaluators do.
  """
  with placement.activations():
    for name, evaluator in evals.items():
      if not (placement.recipe.ema and name.endswith(EMA)):
        evaluator.check(placement.shapes.variables)


def _open_input(task: Task, recipe: Recipe, plan: Plan, start: int, closing: contextlib.ExitStack) -> tuple:
  """Returns the input, its batches on the devices, the first of them, and where everything lives."""
  data = pipeline.train_batches(
    recipe.input,
    seed=recipe.seed,
    start_step=start,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  on_host = next(data)
  task.check(on_host)
  placement = state_init.place(task, recipe, on_host, lengths=plan.lengths)
  sharding.check_batch_size(recipe.input.batch_size, placement.batch_sharding, "config.input.batch_size")
  closing.enter_context(placement.activations())
  batches = feed.to_devices(itertools.chain([on_host], data), placement.batch_sharding)
  closing.callback(batches.close)
  return data, batches, next(batches), placement


def _where_to_start(saved: Checkpoints, recipe: Recipe, plan: Plan) -> tuple[int, Path | None]:
  """Returns the step to go on from and its checkpoint: the run's newest, else the one that `resume` names, else none.

  `resume` branches a run off a kept checkpoint of another: the same parameters, optimizer state and data order go on,
  under this config's schedule and length (Zhai et al. 2022 cool one long run down at several lengths).
  """
  step, path = saved.newest_good(), None
  if step is not None:
    path = saved.path(step)
  elif recipe.resume:
    path = checkpoints.find(recipe.resume, "config.resume")
    step = int(path.name)
  if step is not None and step > plan.total:
    raise UserError(f"{path} is past the {plan.total:,} steps of this config")
  return step or 0, path


def _compile(
  placement: state_init.Placement, plan: Plan, batch: Batch, start: int, closing: contextlib.ExitStack
) -> CompiledSteps:
  """Returns each form of the step, compiled once for these shapes; all else is an error, not a new compilation."""
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)
  settings = step_settings(placement, total_steps=plan.total)
  task, tx, shapes, mesh = placement.task, placement.tx, placement.shapes, placement.mesh

  def lower(form: Hashable) -> jax.stages.Lowered:
    return jitted_update(task.in_form(form), tx, shapes, mesh, **settings).lower(shapes, like)

  steps = CompiledSteps(lower, task.form, start=start, total=plan.total)
  closing.callback(steps.close)
  return steps


def step_settings(placement: state_init.Placement, *, total_steps: int) -> dict[str, Any]:
  """Returns what `core.training.step.make_update` takes beside task and optimizer.

  Raises:
    UserError: the recipe's SAM does not go with the mesh, or clipping by example with the model.
  """
  recipe = placement.recipe
  sharp = sam.from_recipe(
    recipe,
    placement.shapes.params,
    placement.schedules,
    total_steps=total_steps,
    batch_sharding=placement.batch_sharding,
    frozen=placement.task.frozen,
  )
  shapes = placement.shapes
  clip = per_example.from_recipe(recipe, shapes.params, shapes.collections, placement.task.frozen)
  return dict(seed=recipe.seed, accumulate=recipe.grad_accum_steps, sam=sharp, clip=clip)


def _average(placement: state_init.Placement) -> Callable[[Any, Params], Params]:
  where = jax.tree.map(lambda x: x.sharding, placement.shapes.params)
  return jax.jit(ema.params_of, out_shardings=where)


def _claim(
  workdir: Path, config: Mapping[str, Any], project: str, start: int, closing: contextlib.ExitStack
) -> metrics.MetricsLog:
  """Records this start in the workdir and returns its log, cut back to the step that the run goes on from."""
  first = jax.process_index() == 0
  if first:
    files.remove_half_written(workdir, [*provenance.FILES, "metrics.jsonl", "params.npz", "params_ema.npz"])
    provenance.record_run(workdir, config, project=project, start_step=start)
  log = metrics.MetricsLog(workdir / "metrics.jsonl", resume_step=start, writes=first)
  closing.callback(log.close)
  return log


def _wait_for(steps: CompiledSteps, show: progress.Progress, began: float) -> None:
  waiting = time.perf_counter()
  show.wait("compiling")
  steps.wait()
  show.say(f"compiled in {time.perf_counter() - began:.1f} s")
  show.paused(time.perf_counter() - waiting)


def _progress(
  recipe: Recipe, plan: Plan, start: int, num_examples: int, closing: contextlib.ExitStack
) -> progress.Progress:
  show = progress.Progress(
    total_steps=plan.total,
    start_step=start,
    batch_size=recipe.input.batch_size,
    steps_per_epoch=num_examples / recipe.input.batch_size,
    stream=progress.default_stream(jax.process_index() == 0),
  )
  closing.callback(show.close)
  return show


def _warn(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
