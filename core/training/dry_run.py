"""What a run would do, without doing it: `train --dry_run`. All checks are made, nothing is computed or written."""

import collections
import contextlib
import io
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from core import sharding, trees
from core.data import feed, pipeline
from core.optim import optimizer
from core.recipe.recipe import Recipe
from core.tasks.task import Task
from core.training import big_vision_state, introduction, state_init
from core.training.plan import Plan
from core.training.prepare import check_evaluators, make_evaluators, resumed_from, step_settings
from core.training.step import jitted_update

_WIDTH = 118


def describe(task: Task, recipe: Recipe, *, title: str) -> str:
  """Returns tables of a run: batch, parameters, learning rates and weight decays, what happens when, memory.

  Args:
    task: the project's idea.
    recipe: the hyper-parameters.
    title: of the run.

  Raises:
    UserError: whatever the run would refuse.
  """
  plan = Plan.of(recipe, pipeline.dataset_size(recipe.input))
  with contextlib.ExitStack() as closing:
    data = pipeline.train_batches(recipe.input, seed=recipe.seed, start_step=0)
    closing.callback(data.close)
    on_host = next(data)
    task.check(on_host)
    placement = state_init.place(task, recipe, on_host, lengths=plan.lengths)
    sharding.check_batch_size(recipe.input.batch_size, placement.batch_sharding, "config.input.batch_size")
    closing.enter_context(placement.activations())
    batch = feed.put(on_host, placement.batch_sharding)
    folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
    evals = make_evaluators(recipe, task.predict, batch_sharding=placement.batch_sharding, output_dir=folder)
    check_evaluators(evals, placement)
    if task.load is not None:
      task.load(placement.shapes.variables)
    _, stored = resumed_from(recipe, plan)
    notes: list[str] = []
    if isinstance(stored, big_vision_state.Stored):
      big_vision_state.params_of(stored, placement)
      big_vision_state.moments_of(stored, placement, plan.lengths, notes.append)
    memory = _memory_table(_compiled(placement, batch, plan)) if plan.total else "no step is taken"
    parts = [
      introduction.lines(title, placement, plan, data.num_examples, "(none: a dry run)", 0),
      _batch_table(batch),
      _parameter_table(placement),
      _group_table(placement),
      _times_table(plan),
      memory,
      *notes,
    ]
  return "\n\n".join(parts)


def _compiled(placement: state_init.Placement, batch: Mapping[str, jax.Array], plan: Plan) -> jax.stages.Compiled:
  task = placement.task.in_form(placement.task.form(1))
  settings = step_settings(placement, total_steps=plan.total)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(batch))
  return (
    jitted_update(task, placement.tx, placement.shapes, placement.mesh, **settings)
    .lower(placement.shapes, like)
    .compile()
  )


def _batch_table(batch: Mapping[str, jax.Array]) -> str:
  rows = [(key, x.dtype.name, "x".join(map(str, x.shape)), bytes_of(x.nbytes)) for key, x in sorted(batch.items())]
  return _table("a batch", ("key", "type", "shape", "bytes"), rows)


def _parameter_table(placement: state_init.Placement) -> str:
  """Returns the variables by module, two names deep: how many, how large, and over how many devices they are split."""
  modules: dict[str, list[Any]] = collections.defaultdict(list)
  shapes = placement.shapes
  for name, leaf in [*trees.flatten_with_names(shapes.params), *trees.flatten_with_names(shapes.collections)]:
    folders = name.split("/")[:-1]
    modules["/".join(folders[:2]) or name].append(leaf)
  rows = [(name, f"{_count(leaves):,}", bytes_of(_bytes(leaves)), _splits(leaves)) for name, leaves in modules.items()]
  every = jax.tree.leaves((shapes.params, shapes.collections))
  rows.append(("all", f"{_count(every):,}", bytes_of(_bytes(every)), ""))
  moments = jax.tree.leaves(shapes.opt_state)
  rows.append(("optimizer state", f"{_count(moments):,}", bytes_of(_bytes(moments)), _splits(moments)))
  return _table("variables", ("module", "numbers", "bytes", "split over"), rows)


def _group_table(placement: state_init.Placement) -> str:
  """Returns the parameters by what the optimizer does to them."""
  which, lr, wd = optimizer.rates(placement.recipe, placement.shapes.params, placement.task.frozen)
  groups: dict[tuple, list[tuple[str, Any]]] = collections.defaultdict(list)
  leaves = trees.flatten_with_names(placement.shapes.params)
  for (name, leaf), *key in zip(leaves, *map(jax.tree.leaves, (which, lr, wd))):
    groups[tuple(key)].append((name, leaf))
  rows = []
  for (schedule, rate, decay), members in sorted(groups.items(), key=_frozen_last):
    frozen = schedule == optimizer.FROZEN
    numbers = f"{_count(leaf for _, leaf in members):,}"
    names = f"{members[0][0]}" + (f" and {len(members) - 1} more" if len(members) > 1 else "")
    rows.append(("frozen" if frozen else f"{rate:g}", "" if frozen else f"{decay:g}", numbers, names))
  return _table(
    "learning rates and weight decays, which a schedule multiplies", ("lr", "wd", "numbers", "parameters"), rows
  )


def _frozen_last(group: tuple[tuple[int, float, float], Any]) -> tuple:
  (schedule, rate, decay), _ = group
  return schedule == optimizer.FROZEN, schedule, -rate, -decay


def _times_table(plan: Plan) -> str:
  def multiples(every: int) -> int:
    return -(-plan.total // every)  # And the last step.

  logged = multiples(plan.log_training) + (plan.total > 1 and plan.log_training > 1)  # The first step is, too.
  saved = multiples(plan.ckpt)
  if plan.keep_ckpt and plan.total:  # Saved besides, but for those that are due anyway.
    saved += (plan.total - 1) // plan.keep_ckpt - (plan.total - 1) // math.lcm(plan.ckpt, plan.keep_ckpt)
  rows = [("log", plan.log_training, logged), ("checkpoint", plan.ckpt, saved)]
  rows += [(f"evaluate {name}", every, multiples(every)) for name, every in plan.evals.items() if every is not None]
  if plan.keep_ckpt:
    rows.append(("keep a checkpoint", plan.keep_ckpt, plan.total // plan.keep_ckpt))
  shown = [(what, f"every {every:,} steps", f"{times:,} times") for what, every, times in rows]
  before = [name for name in plan.evals if plan.evaluates(name, 0)]
  shown += [(f"evaluate {name}", "before the first step", "1 times") for name in before]
  return _table(f"when, of {plan.total:,} steps", ("what", "how often", "in all"), shown)


def _memory_table(compiled: jax.stages.Compiled) -> str:
  found = compiled.memory_analysis()
  if found is None:  # A backend that does not tell.
    return "memory of the step: this backend does not tell"
  sizes = {
    "state and batch": found.argument_size_in_bytes,
    "new state and metrics that take no old one's place": found.output_size_in_bytes - found.alias_size_in_bytes,
    "temporaries": found.temp_size_in_bytes,
  }
  rows = [(what, bytes_of(size)) for what, size in (*sizes.items(), ("all", sum(sizes.values())))]
  return _table("memory of the compiled step on a device", ("what", "bytes"), rows)


def _table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
  shown = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
  for column in columns:
    shown.add_column(column, justify="right" if column in ("numbers", "bytes") else "left")
  for row in rows:
    shown.add_row(*row)
  text = io.StringIO()
  Console(file=text, width=_WIDTH, color_system=None).print(shown)
  return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip()


def _count(leaves: Iterable[Any]) -> int:
  return sum(math.prod(leaf.shape) for leaf in leaves)


def _bytes(leaves: Iterable[Any]) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _splits(leaves: Iterable[Any]) -> str:
  """Returns the mesh axes over which some of the arrays are split."""
  axes = {axis for leaf in leaves for names in leaf.sharding.spec if names is not None
          for axis in ((names,) if isinstance(names, str) else names)}  # fmt: skip
  return ", ".join(sorted(axes)) or "whole on each"


def bytes_of(count: float) -> str:
  """Returns a number of bytes in the unit that keeps it readable, `1.35 MB`."""
  for unit in ("B", "kB", "MB", "GB"):
    if count < 1_000:
      return f"{count:.4g} {unit}"
    count /= 1_000
  return f"{count:.4g} TB"
