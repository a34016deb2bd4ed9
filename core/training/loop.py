"""The one training loop. A project that outgrows it can copy it and change a line."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from core import sharding
from core.checkpoint import pretrained
from core.cluster import processes
from core.cluster.preemption import Preempted
from core.models import grids
from core.recipe.recipe import Recipe
from core.state import Variables
from core.tasks.task import Task
from core.training import parts as parts_lib
from core.training.parts import Now, Part, averaged
from core.training.prepare import Run, prepare


def run(task: Task, recipe: Recipe, workdir: Path, *, project: str = "", name: str = "") -> dict[str, float]:
  """Prepares a run and trains it to its end; see `prepare` and `train`."""
  with prepare(task, recipe, workdir, project=project, name=name) as prepared:
    return train(prepared)


def train(run: Run, parts: Sequence[Part] | None = None) -> dict[str, float]:
  """Trains a prepared run to its end.

  Args:
    run: what `prepare` gave; the train state in it is used up.
    parts: what is done after each step, in this order; `core.training.parts.usual` by default.

  Returns:
    The results of the last evaluation, `{"val/prec@1": ...}`.

  Raises:
    Preempted: the run was asked to stop, and can be started again.
    NonFiniteLoss: training diverged.
    OSError: the last checkpoint could not be written; params.npz is there if that could.
  """
  with contextlib.ExitStack() as closing:
    parts = closing.enter_context(parts_lib.usual(run)) if parts is None else parts
    now = Now(step=run.start, state=run.state)
    for part in parts:  # An evaluation is left to do if the run was stopped between a step and it.
      part.after(now)
    batch = next(run.batches)
    while now.step < run.plan.total and not now.stopping:
      previous, step = now.metrics, now.step + 1
      processes.report_step(step)
      update, waited = run.steps.for_step(step)
      run.progress.paused(waited)
      with jax.transfer_guard("disallow"):
        now.state, now.metrics = update(now.state, batch)
        batch = next(run.batches) if step < run.plan.total else None
      # The host runs one step ahead of the device and no more: the device never waits for it, nor do batches pile up.
      jax.block_until_ready(previous)
      now.step = step
      for part in parts:
        part.after(now)
    return _finish(run, now)


def _finish(run: Run, now: Now) -> dict[str, float]:
  """Writes the trained variables, unless the run is only interrupted."""
  if run.saved.wait() and now.stopping and (now.step < run.plan.total or not now.evaluated):
    raise Preempted(now.step)
  writes = {run.workdir / "params.npz": lambda: now.state.variables}
  if run.recipe.ema:
    writes[run.workdir / "params_ema.npz"] = lambda: averaged(run, now.state)
  run.saved.finish({path: functools.partial(_save, path, variables) for path, variables in writes.items()})
  run.progress.say(f"done: results in {run.workdir}")
  return now.results


def _save(path: Path, variables: Callable[[], Variables]) -> None:
  """Writes variables in the published layout from the first process; all of them must call it."""
  on_host = sharding.to_host(variables())
  if jax.process_index() == 0:
    pretrained.save_variables(path, on_host, grids=grids.noted(on_host["params"]))
