"""The one training loop. It reads top to bottom; a project that outgrows it can copy this file and change a line."""

import contextlib
import dataclasses
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from core import durations, sharding
from core.checkpoint import pretrained
from core.checkpoint import state as checkpoints
from core.checkpoint.state import Checkpoints
from core.cluster import processes
from core.cluster.preemption import Preempted, Preemption
from core.data import feed, input_config, pipeline
from core.errors import UserError
from core.evaluators import registry as evaluators
from core.optim import ema, sam
from core.state import Params
from core.tasks.task import Task
from core.training import compiled_steps, metrics, profiling, progress, provenance, state_init
from core.training.step import jitted_update


class NonFiniteLoss(Exception):
  """The loss or its gradient became NaN or infinite; the newest checkpoint is from before."""


def run(task: Task, config: ConfigDict, workdir: Path, *, project: str = "", name: str = "") -> dict[str, float]:
  """Trains `task` as `config` says, from the newest checkpoint in `workdir` if there is one, to the end.

  Args:
    task: the project's idea.
    config: the hyper-parameters; see `core.config.KEYS`.
    workdir: where everything the run leaves behind lies, and where a stopped run is found again.
    project: whose trainer this is, for the run's first line and its record.
    name: of the config, likewise.

  Returns:
    The results of the last evaluation, `{"val/prec@1": ...}`.

  Raises:
    UserError: a mistake in the config, data, weights or checkpoint, before the first step.
    Preempted: the run was asked to stop, and can be started again.
    NonFiniteLoss: training diverged.
  """
  first = jax.process_index() == 0
  out = progress.default_stream(first)
  provenance.check_workdir(workdir, config)

  # How long the run is.
  inputs = input_config.read(config.input)
  plan = _plan(config, pipeline.dataset_size(inputs))

  with contextlib.ExitStack() as closing:
    # Where it stands.
    warn = lambda line: print(line, file=sys.stderr, flush=True)
    saved = Checkpoints(workdir / "checkpoints", keep_every=plan.keep_ckpt, warn=warn)
    closing.callback(saved.close)
    start, checkpoint = _where_to_start(saved, config)
    data = pipeline.train_batches(
      inputs,
      seed=config.get("seed", 0),
      start_step=start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    on_host = next(data)
    task.check(on_host)

    # Where things live. For "auto" that depends on the model, whose shapes depend on the batch's.
    rules = config.get("sharding_rules", ())
    mesh = state_init.make_mesh(task, config, on_host)
    batch_sharding = sharding.batch_sharding(mesh, rules)
    sharding.check_batch_size(config.input.batch_size, batch_sharding, "config.input.batch_size")
    closing.enter_context(sharding.activations(mesh, rules))
    batches = feed.to_devices(itertools.chain([on_host], data), batch_sharding)
    closing.callback(batches.close)
    batch = next(batches)

    # The state: its shapes first, so that whatever does not fit is refused before anything is computed.
    shapes, tx, schedules = state_init.abstract_state(task, config, plan.sched_kw, mesh, batch)
    if start > plan.total:
      raise UserError(f"{checkpoint} is past the {plan.total:,} steps of this config")
    predict = task.predict  # Once: evaluators of one prediction share its program.
    evals = {
      name: evaluators.make(
        name,
        eval_config,
        predict=predict,
        sharding=batch_sharding,
        output_dir=workdir / "evals",
        batch_size=config.input.batch_size,
      )
      for name, eval_config in _evals(config).items()
    }
    state = (
      checkpoints.restore(checkpoint, shapes) if checkpoint else state_init.fresh_state(task, config, shapes, tx, batch)
    )
    for each in config.get("evals", {}):  # Those of the average read the same data by the same programs.
      with evaluators.named(each):
        evals[each].check(state)

    show = progress.Progress(
      total_steps=plan.total,
      start_step=start,
      batch_size=config.input.batch_size,
      steps_per_epoch=data.num_examples / config.input.batch_size,
      stream=out,
    )
    _introduce(show, f"{project} {name}".strip(), config, plan, mesh, state, data, workdir, start)

    # Each form of the step compiled once, for these shapes and shardings: all else is an error, not a new compilation.
    show.wait("compiling")
    began = time.perf_counter()
    sharp = sam.from_config(config, shapes.params, schedules, total_steps=plan.total, batch_sharding=batch_sharding)
    settings = dict(seed=config.get("seed", 0), accumulate=config.get("grad_accum_steps", 1), sam=sharp)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (state, batch))

    def lower(form: Hashable) -> jax.stages.Lowered:
      return jitted_update(task.in_form(form), tx, shapes, mesh, **settings).lower(*like)

    updates = compiled_steps.CompiledSteps(lower, task.form, start=start, total=plan.total)
    closing.callback(updates.close)
    averaged = jax.jit(ema.params_of, out_shardings=jax.tree.map(lambda x: x.sharding, shapes.params))
    show.say(f"compiled in {time.perf_counter() - began:.1f} s")
    show.paused(time.perf_counter() - began)

    # From here on the workdir is this run's: all that could be refused has been.
    if first:
      provenance.record_run(workdir, config, project=project, start_step=start)
    log = metrics.MetricsLog(workdir / "metrics.jsonl", resume_step=start, writes=first)
    closing.callback(log.close)
    preemption = closing.enter_context(Preemption())
    trace = closing.enter_context(profiling.Trace(config.get("profile_steps"), workdir / "profile"))
    pending: dict[int, Mapping[str, jax.Array]] = {}
    results: dict[str, float] = {}

    def settle(through: int) -> None:
      """Fetches the metrics of all steps up to `through`, refuses what is not finite, logs what is due."""
      fetched = jax.device_get({step: pending.pop(step) for step in sorted(pending) if step <= through})
      for step, values in fetched.items():
        if fault := metrics.first_non_finite(values):
          saved.wait()
          raise NonFiniteLoss(f"{fault} at step {step:,}; {saved.newest_line()}")
        if plan.logs(step):
          timings = show.log(step, float(values["training_loss"]))
          log.write(step, {**values, **_rates(config, schedules, step), **timings})
          show.skipped(data.skipped)

    def evaluate(step: int) -> bool:
      """Runs the evaluations due at `step` that are not in the log yet; False if it left off, the run being to stop."""
      with_average = functools.cache(lambda: dataclasses.replace(state, params=averaged(state.opt_state, state.params)))
      for name, evaluator in evals.items():
        if not plan.evaluates(name, step):
          continue
        found = {key: value for key, value in log.at(step).items() if key.startswith(f"{name}/")}
        if not found:
          began = time.perf_counter()
          subject = with_average() if name.endswith(_EMA) else state
          values = evaluator.run(subject, interrupted=preemption.requested)
          if values is None:
            return False
          found = {f"{name}/{key}": value for key, value in values.items()}
          seconds = time.perf_counter() - began
          log.write(step, {**found, f"time/{name}_seconds": seconds})
          show.evaluated(step, found, seconds)
        results.update(found)
      return True

    if not evaluate(start):  # Left to do if the run was stopped between a step and its evaluation.
      raise Preempted(start)
    step, evaluated, stopping = start, True, False
    for step in range(start + 1, plan.total + 1):
      processes.report_step(step)
      trace.before(step)
      update, waited = updates.for_step(step)
      show.paused(waited)
      with jax.transfer_guard("disallow"):
        state, pending[step] = update(state, batch)
        batch = next(batches) if step < plan.total else None
      # The host runs one step ahead of the device and no more: the device never waits for it, nor do batches pile up.
      jax.block_until_ready(pending.get(step - 1))
      trace.after(step, state)
      if plan.logs(step - 1):
        settle(step - 1)
      if plan.evaluates_any(step):
        settle(step)
        evaluated = evaluate(step)
      stopping = preemption.agreed(step)
      if stopping or plan.saves(step):
        settle(step)
        show.paused(saved.save(step, state))
      if stopping:
        break
      show.tick(step)

    if not saved.wait():
      raise OSError(f"the last checkpoint could not be written to {workdir / 'checkpoints'}")
    if stopping and (step < plan.total or not evaluated):
      raise Preempted(step)
    _save_params(workdir / "params.npz", state.params)
    if config.get("ema"):
      _save_params(workdir / "params_ema.npz", averaged(state.opt_state, state.params))
    show.say(f"done: results in {workdir}")
    return results


@dataclasses.dataclass(frozen=True)
class Plan:
  """When things happen, in steps."""

  total: int
  log_training: int
  ckpt: int
  keep_ckpt: int | None
  evals: Mapping[str, int]
  sched_kw: Mapping[str, Any]

  def logs(self, step: int) -> bool:
    return step == 1 or step == self.total or (step > 0 and step % self.log_training == 0)

  def saves(self, step: int) -> bool:
    return step % self.ckpt == 0 or step == self.total

  def evaluates(self, name: str, step: int) -> bool:
    return step > 0 and (step % self.evals[name] == 0 or step == self.total)

  def evaluates_any(self, step: int) -> bool:
    return any(self.evaluates(name, step) for name in self.evals)


def _plan(config: ConfigDict, data_size: int) -> Plan:
  batch_size = config.input.batch_size
  total = durations.steps("total", config, data_size=data_size, batch_size=batch_size)
  if not total:
    raise UserError("config: the length of training is missing: set total_epochs, total_steps or total_examples")
  known = dict(total_steps=total, batch_size=batch_size, data_size=data_size)
  every = lambda name, where, default: max(1, durations.steps(name, where, default=default, **known))
  return Plan(
    total=total,
    log_training=every("log_training", config, 50),
    ckpt=every("ckpt", config, 1_000),
    keep_ckpt=durations.steps("keep_ckpt", config, **known),
    evals={name: every("log", e, total) for name, e in _evals(config).items()},
    sched_kw=known,
  )


_EMA = "_ema"


def _evals(config: ConfigDict) -> dict[str, ConfigDict]:
  """The evaluations by name, `val`, and where an average of the parameters is kept, the same of it as `val_ema`."""
  raw = dict(config.get("evals", {}))
  return raw | ({name + _EMA: each for name, each in raw.items()} if config.get("ema") else {})


def _where_to_start(saved: Checkpoints, config: ConfigDict) -> tuple[int, Path | None]:
  """The step to go on from and its checkpoint: this run's newest, else the one that `config.resume` names, else none.

  `resume` branches a run off a kept checkpoint of another: the same parameters, optimizer state and data order go on,
  under this config's schedule and length (Zhai et al. 2022 cool one long run down at several lengths).
  """
  if (step := saved.newest_good()) is not None:
    return step, saved.path(step)
  if config.get("resume"):
    path = checkpoints.find(config.resume, "config.resume")
    return int(path.name), path
  return 0, None


def _save_params(path: Path, params: Params) -> None:
  """The published layout, written by the first process; all of them must call it."""
  on_host = sharding.to_host(params)
  if jax.process_index() == 0:
    pretrained.save_params(path, on_host)


def _rates(config: ConfigDict, schedules: list[Callable], step: int) -> dict[str, float]:
  """The learning rate at which `step` was taken, one for each schedule."""
  return {f"lr{i or ''}": config.get("lr", 1.0) * float(schedule(step - 1)) for i, schedule in enumerate(schedules)}


def _introduce(show, title, config, plan, mesh, state, data, workdir, start) -> None:
  """What will run on what, in a few lines."""
  devices = mesh.devices.flat
  count = sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(state.params))
  which = "student" if config.get("teachers") else "model"
  model = f"{config.get(f'{which}_name', 'model')} {config.get(which, {}).get('variant', '')}".strip()
  if config.get("teachers"):
    model += f" and {', '.join(config.teachers)}"
  cores = f" of {os.cpu_count()} cores" if devices[0].platform == "cpu" else ""
  processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
  epochs = plan.total * config.input.batch_size / data.num_examples
  source = config.input.data
  named = " ".join(str(source[key]) for key in ("name", "path", "split") if key in source) or ", ".join(source)
  rows = {
    "model": f"{model}, {count:,} parameters",
    "device": f"{len(devices)} x {devices[0].device_kind}{cores}{processes}, mesh {dict(mesh.shape)}",
    "data": f"{named}: {data.num_examples:,} examples, batch {config.input.batch_size:,}",
    "train": f"{plan.total:,} steps, {epochs:.4g} epochs",
    "run": f"{workdir}" + (f", resumed after step {start:,}" if start else ""),
  }
  show.say(f"{title}\n{progress.table(rows)}")
