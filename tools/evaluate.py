"""Evaluates weights without training: any evaluator of any config, on any weights, and on checkpoints of a run.

./bazelw run //tools:evaluate -- --config=projects/vit/configs/digits.py --weights=params.npz,other.safetensors
./bazelw run //tools:evaluate -- --workdir=runs/first --steps=all
"""

import dataclasses
import importlib
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from core import config as config_lib
from core import files, sharding
from core.checkpoint import state as checkpoints
from core.data import feed
from core.errors import UserError, nearest
from core.evaluators import registry
from core.optim import ema
from core.training import cli, initial, progress
from core.training.state import TrainState
from core.training.task import Batch

_USAGE = """\
usage: evaluate --config=FILE.py[:ARGS] --weights=W[,W...] [options]
       evaluate --workdir=DIR [--steps=all|S,S,...] [options]

  --config=FILE.py:ARGS  a project's config: its model, and its evals
  --config.KEY=VALUE     change one entry, e.g. --config.evals.val.batch_size=64
  --weights=W,W          files or published names, all that the config's model_init may be
  --workdir=DIR          a run: its config, unless --config is given, and its newest checkpoint
  --steps=all            all checkpoints of the run, or those of these steps
  --evals=NAME,NAME      which of the config's evals; all by default
  --project=NAME         whose model it is, where the config lies outside of projects/NAME
  --output=FILE.json     where the JSON goes; default: evaluate.json in the workdir, or runs/evaluate-...; files that
                         evaluators write (save, per_class) go to FILE/WEIGHTS/EVAL/
  --cpu_devices=N        pretend that this machine's CPU is N devices
"""
_FLAGS = ("config", "weights", "workdir", "steps", "evals", "project", "output", "cpu_devices", "cache_dir", "help")


@dataclasses.dataclass(frozen=True)
class Subject:
  """Weights to evaluate: what to call them, and a function that gives them on the devices."""

  name: str
  params: Callable[[], Any]


def main(argv: Sequence[str]) -> int:
  flags, overrides = cli.parse(argv, _FLAGS)
  if "help" in flags or not flags:
    print(_USAGE)
    return 0
  if ("weights" in flags) == ("workdir" in flags):
    raise UserError("give one of --weights=... and --workdir=...; see --help")
  workdir = files.from_here(flags["workdir"]) if "workdir" in flags else None
  project, config = _config(flags, overrides, workdir)
  default = f"runs/evaluate-{project}-{time.strftime('%Y%m%d-%H%M%S')}.json"
  output = files.from_here(flags.get("output") or (workdir / "evaluate.json" if workdir else default))
  cli.start_jax(flags, workdir or output)

  make_task = _trainer(project).make_task
  mesh = sharding.make_mesh(config.get("mesh", [("data", -1)]))
  batch_sharding = sharding.batch_sharding(mesh, config.get("sharding_rules", ()))
  task = make_task(config)
  written = output.with_suffix("") / ".unfinished"  # Where evaluators write files, before each subject has a folder.
  evals = {
    name: registry.make(
      name,
      config.evals[name],
      predict=task.predict,
      sharding=batch_sharding,
      output_dir=written,
      batch_size=config.get("input", {}).get("batch_size"),
    )
    for name in _chosen(config, flags)
  }
  batch = feed.put(next(iter(next(iter(evals.values())).data)), batch_sharding)
  known = dict(total_steps=1, batch_size=1, data_size=1)  # The shapes do not depend on the schedules.
  shapes, _, _ = initial.abstract_state(task, config, known, mesh, batch)
  for name, evaluator in evals.items():
    with registry.named(name):
      evaluator.check(shapes)
  if workdir:
    subjects = _checkpoints(workdir, flags.get("steps"), shapes, average=bool(config.get("ema")))
  else:
    subjects = _weights(flags["weights"], config, make_task, shapes, batch)

  results = []
  for subject in subjects:
    print(f"evaluating {subject.name}", file=sys.stderr, flush=True)
    state = TrainState.create(subject.params(), ())
    results.append({"weights": subject.name} | _run(evals, state))
    if written.is_dir():
      _put_away(written, re.sub(r"[^\w.]+", "_", subject.name))
  output.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(output) as file:
    report = {"project": project, "config": json.loads(config_lib.to_json(config)), "results": results}
    file.write(f"{json.dumps(report, indent=1)}\n".encode())
  print(table(results))
  print(f"written to {output}")
  return 0


def table(results: Sequence[Mapping[str, Any]]) -> str:
  """A row a metric and a column a subject, or, of more subjects than metrics, the other way round."""
  names = list(dict.fromkeys(key for found in results for key in found if key != "weights"))
  shown = lambda found, name: progress.format_metric(name, found[name]) if name in found else ""
  rows = [["", *names]] + [[found["weights"], *(shown(found, name) for name in names)] for found in results]
  if len(results) <= len(names):
    rows = [list(column) for column in zip(*rows)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  aligned = [[row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))] for row in rows]
  return "\n".join("  ".join(row).rstrip() for row in aligned)


def _run(evals: Mapping[str, Any], state: TrainState) -> dict[str, float]:
  return {f"{name}/{key}": value for name, each in evals.items() for key, value in each.run(state).items()}


def _put_away(written: Path, name: str) -> None:
  """Gives what the evaluators wrote for one subject a folder of its own."""
  place = written.with_name(name)
  shutil.rmtree(place, ignore_errors=True)
  written.rename(place)


def _config(flags: Mapping[str, str], overrides, workdir: Path | None) -> tuple[str, ConfigDict]:
  """The project's name and the config: that of --config, or what the run in `workdir` was made by."""
  if workdir and not (workdir / "run.json").is_file():
    raise UserError(f"--workdir: {workdir} holds no run (run.json is missing)")
  if "config" not in flags and not workdir:
    raise UserError("give --config=FILE.py with --weights; see --help")
  project = flags.get("project")
  if not project and "config" in flags:
    parts = Path(flags["config"].partition(":")[0]).parts
    project = parts[parts.index("projects") + 1] if "projects" in parts[:-1] else None
  if not project and workdir:
    project = json.loads((workdir / "run.json").read_text())[-1].get("project")
  if not project:
    raise UserError("--project is missing: give the name of the project whose model this is, --project=vit say")
  if "config" in flags:
    folder = Path(_trainer(project).__file__).parent
    return project, config_lib.load(cli.config_spec(flags["config"], folder), overrides)
  return project, config_lib.from_json(workdir / "config.json", overrides)


def _trainer(project: str) -> Any:
  known = sorted(path.parent.name for path in Path(__file__).parents[1].glob("projects/*/train.py"))
  if project not in known:
    raise UserError(f"there is no project {project!r}{nearest(project, known)}")
  return importlib.import_module(f"projects.{project}.train")


def _chosen(config: ConfigDict, flags: Mapping[str, str]) -> list[str]:
  known = list(config.get("evals", {}))
  chosen = flags["evals"].split(",") if "evals" in flags else known
  if not chosen:
    raise UserError("the config has no evals; add some by --config.evals.NAME.type=... or choose another config")
  for name in chosen:
    if name not in known:
      raise UserError(f"--evals: the config has no eval {name!r}{nearest(name, known)}")
  return chosen


def _weights(specs: str, config: ConfigDict, make_task: Callable, shapes: TrainState, batch: Batch) -> list[Subject]:
  """Weights as `config.model_init` takes them; each replaces the config's own."""

  def params(spec: str) -> Any:
    initialized = ConfigDict(config).unlock()
    initialized.model_init = spec
    return initial.fresh_params(make_task(initialized), config, shapes.params, batch)

  return [Subject(spec, lambda spec=spec: params(spec)) for spec in specs.split(",")]


def _checkpoints(workdir: Path, steps: str | None, shapes: TrainState, *, average: bool) -> Iterable[Subject]:
  """Checkpoints of a run: their parameters and, where one is kept, the average of them."""
  there = checkpoints.steps(workdir / "checkpoints")
  wanted = there if steps == "all" else steps.split(",") if steps else there[-1:]
  if not there:
    raise UserError(f"--workdir: {workdir} holds no checkpoint")
  for step in map(str, wanted):
    if step not in map(str, there):
      raise UserError(f"--steps: {workdir} has no checkpoint {step!r}; there are {', '.join(map(str, there))}")
    path = checkpoints.find(workdir / "checkpoints" / step, "--workdir")
    yield Subject(f"step {int(step):,}", lambda path=path: _restored(path, shapes, average=False).params)
    if average:
      yield Subject(f"step {int(step):,} ema", lambda path=path: _average(path, shapes))


def _average(path: Path, shapes: TrainState) -> Any:
  state = _restored(path, shapes, average=True)
  where = jax.tree.map(lambda x: x.sharding, shapes.params)
  return jax.jit(ema.params_of, out_shardings=where)(ema.state_of(state.opt_state), state.params)


def _restored(path: Path, shapes: TrainState, *, average: bool) -> TrainState:
  """The parameters of a checkpoint, and the average if asked for; moments and the like are left on the disk."""
  is_average = lambda x: isinstance(x, ema.EmaState)
  keep = lambda x: x if average and is_average(x) else jax.tree.map(lambda _: checkpoints.LEFT_OUT, x)
  opt_state = jax.tree.map(keep, shapes.opt_state, is_leaf=is_average)
  return checkpoints.restore(path, dataclasses.replace(shapes, step=checkpoints.LEFT_OUT, opt_state=opt_state))


if __name__ == "__main__":
  cli.exit_with(lambda: main(sys.argv[1:]))
