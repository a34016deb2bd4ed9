"""What a program is run on: a project's config, and weights of its model from files or a run's checkpoints."""

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from core import config as config_lib
from core.checkpoint import state as checkpoint_files
from core.errors import UserError, nearest
from core.optim import ema
from core.state import Batch, TrainState
from core.training import cli, state_init


@dataclasses.dataclass(frozen=True)
class Subject:
  """Weights to evaluate: what to call them, and a function that gives them on the devices."""

  name: str
  params: Callable[[], Any]


def read_config(
  flags: Mapping[str, str], overrides: Sequence[tuple[str, str]], workdir: Path | None = None
) -> tuple[str, ConfigDict]:
  """The project's name and the config: that of --config, or what the run in `workdir` was made by.

  Raises:
    UserError: neither is given, or it cannot be read; no project is named.
  """
  if workdir and not (workdir / "run.json").is_file():
    raise UserError(f"--workdir: {workdir} holds no run (run.json is missing)")
  if "config" not in flags and not workdir:
    raise UserError("give --config=FILE.py with --weights; see --help")
  project = flags.get("project")
  if not project and "config" in flags:
    project = project_of(flags["config"])
  if not project and workdir:
    project = json.loads((workdir / "run.json").read_text())[-1].get("project")
  if not project:
    raise UserError("--project is missing: give the name of the project whose model this is, --project=vit say")
  if "config" in flags:
    folder = Path(trainer(project).__file__).parent
    return project, config_lib.load(cli.config_spec(flags["config"], folder), overrides)
  return project, config_lib.from_json(workdir / "config.json", overrides)


def project_of(spec: str) -> str | None:
  """The project in whose folder a config lies, by its path: "vit" of `projects/vit/configs/digits.py:runlocal`."""
  parts = Path(spec.partition(":")[0]).parts
  return parts[parts.index("projects") + 1] if "projects" in parts[:-1] else None


def trainer(project: str) -> Any:
  """The module `projects.NAME.train`, which has `make_task`.

  Raises:
    UserError: no such project.
  """
  known = sorted(path.parent.name for path in Path(__file__).parents[1].glob("projects/*/train.py"))
  if project not in known:
    raise UserError(f"there is no project {project!r}{nearest(project, known)}")
  return importlib.import_module(f"projects.{project}.train")


def weights(specs: str, config: ConfigDict, make_task: Callable, shapes: TrainState, batch: Batch) -> list[Subject]:
  """Weights as `config.model_init` takes them; each replaces the config's own."""

  def params(spec: str) -> Any:
    initialized = ConfigDict(config).unlock()
    initialized.model_init = spec
    return state_init.fresh_params(make_task(initialized), config, shapes.params, batch)

  return [Subject(spec, lambda spec=spec: params(spec)) for spec in specs.split(",")]


def checkpoints(workdir: Path, steps: str | None, shapes: TrainState, *, average: bool) -> Iterable[Subject]:
  """Checkpoints of a run: their parameters and, where one is kept, the average of them.

  Args:
    workdir: of the run.
    steps: "all", steps joined by commas, or None for the newest.
    shapes: of the state, with shardings.
    average: also the average of the parameters.

  Raises:
    UserError: no such checkpoint.
  """
  there = checkpoint_files.steps(workdir / "checkpoints")
  wanted = there if steps == "all" else steps.split(",") if steps else there[-1:]
  if not there:
    raise UserError(f"--workdir: {workdir} holds no checkpoint")
  for step in map(str, wanted):
    if step not in map(str, there):
      raise UserError(f"--steps: {workdir} has no checkpoint {step!r}; there are {', '.join(map(str, there))}")
    path = checkpoint_files.find(workdir / "checkpoints" / step, "--workdir")
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
  keep = lambda x: x if average and is_average(x) else jax.tree.map(lambda _: checkpoint_files.LEFT_OUT, x)
  opt_state = jax.tree.map(keep, shapes.opt_state, is_leaf=is_average)
  return checkpoint_files.restore(
    path, dataclasses.replace(shapes, step=checkpoint_files.LEFT_OUT, opt_state=opt_state)
  )
