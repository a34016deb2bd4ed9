"""What a program is run on: a project's model by a config, with weights from files or from a run's checkpoints."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from core import command, trees
from core.checkpoint import big_vision, pretrained
from core.checkpoint import state as checkpoint_files
from core.errors import UserError, first_few, nearest
from core.masking import masked
from core.models import grids
from core.optim import ema
from core.recipe import load
from core.recipe.models.load import Load
from core.recipe.recipe import Recipe
from core.state import TrainState, Variables
from core.tasks.task import Task
from core.training import cli, provenance
from core.training.state_init import Placement


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights to run a model with.

  Attributes:
    name: what to call them, without what is secret in a URL.
    variables: gives them on the devices.
  """

  name: str
  variables: Callable[[], Variables]


def define_flags(made: command.Command) -> None:
  """Declares the flags that `read_recipe` reads."""
  made.text("config", "a project's config", shown="FILE.py:ARGS")
  made.text("workdir", "a run: its config, unless --config is given, and its newest checkpoint", shown="DIR")
  made.text("project", "whose model it is, where the config lies outside of projects/NAME", shown="NAME")


def read_recipe(
  flags: Any, overrides: Sequence[tuple[str, str]], workdir: Path | None = None
) -> tuple[str, type[Task], Recipe]:
  """Returns project, task and recipe: those of --config, or of the run in `workdir`.

  Raises:
    UserError: neither is given, or it cannot be read; no project is named.
  """
  if workdir and not (workdir / "run.json").is_file():
    raise UserError(f"--workdir: {workdir} holds no run (run.json is missing)")
  if not flags.config and not workdir:
    raise UserError("give --config=FILE.py with --weights; see --help")
  named = flags.project or (flags.config and project_of(flags.config))
  if not named and workdir:
    named = provenance.project_of(workdir)
  if flags.config:
    return recipe_of(flags.config, overrides, named)
  trainer = trainer_of(named)
  return named, *cli.read_recipe(trainer.TASK, load.from_json(workdir / "config.json", overrides))


def recipe_of(
  config: str, overrides: Sequence[tuple[str, str]] = (), project: str | None = None
) -> tuple[str, type[Task], Recipe]:
  """Returns project, task and recipe of a config's file.

  Raises:
    UserError: it cannot be read, or no project is named and the file lies in none.
  """
  project = project or project_of(config)
  trainer = trainer_of(project)
  spec = cli.config_spec(config, Path(trainer.__file__).parent)
  return project, *cli.read_recipe(trainer.TASK, load.read(spec, overrides))


def project_of(spec: str) -> str | None:
  """Returns the project in whose folder a config lies: "vit" of `projects/vit/configs/digits.py:runlocal`."""
  parts = Path(spec.partition(":")[0]).parts
  return parts[parts.index("projects") + 1] if "projects" in parts[:-1] else None


def trainer_of(project: str | None) -> Any:
  """Returns the module `projects.NAME.train`, which has `TASK`.

  Raises:
    UserError: no such project, or none is named.
  """
  if not project:
    raise UserError("--project is missing: give the name of the project whose model this is, --project=vit say")
  known = sorted(path.parent.name for path in Path(__file__).parents[1].glob("projects/*/train.py"))
  if project not in known:
    raise UserError(f"there is no project {project!r}{nearest(project, known)}")
  return importlib.import_module(f"projects.{project}.train")


def from_files(specs: str, placement: Placement) -> list[Weights]:
  """Returns weights that `config.model_init` could name, joined by commas; each replaces the config's own."""
  return [Weights(masked(spec), functools.partial(load_whole, spec, placement)) for spec in specs.split(",")]


def load_whole(spec: str, placement: Placement) -> Variables:
  """Returns the variables of a file, all of them, on the devices.

  What a config leaves out of a file to train it anew, `model_load=dict(dont_load=["head/.*"])`, is loaded here: it was
  trained when the file was written.

  Args:
    spec: a file, folder, URL or published name, as `config.model_init`.
    placement: of the model.

  Raises:
    UserError: the file cannot be read, does not fit the model, or lacks some of its variables.
  """
  shapes = placement.shapes.variables
  loaded = _own_file(spec, shapes)
  if loaded is None:
    task = type(placement.task)(_without_exceptions(placement.recipe, spec))
    try:
      loaded = task.load(jax.tree.map(_unset, shapes))
    except UserError as error:  # The task knows weights by its config's key, where these were no flag.
      raise UserError(str(error).removeprefix("config.model_init: ")) from None
    lacking = [name.removeprefix("params/") for name, leaf in trees.flatten_with_names(loaded) if _is_unset(leaf)]
    if lacking:
      raise UserError(f"{spec}: not the weights of this model: it lacks {first_few(lacking)}")
  return jax.device_put(loaded, jax.tree.map(lambda x: x.sharding, shapes))


def _own_file(spec: str, shapes: Variables) -> Variables | None:
  """Returns what a file holds, if these are just the model's variables by their own names; None if it is another.

  A task may refuse such a file, or leave some of it alone: it was not written to train from. CLIPPO's classifier is so.
  """
  names = [name for name, _ in trees.flatten_with_names(shapes["params"])]
  if not (".npz" in spec or big_vision.split(spec)) or sorted(pretrained.names(spec)) != sorted(names):
    return None
  held = dict(trees.flatten_with_names(pretrained.load_variables(spec)))
  wanted = dict(trees.flatten_with_names(shapes))

  def fits(name: str) -> bool:
    x = wanted[name]
    return held[name].shape == x.shape and np.can_cast(held[name].dtype, x.dtype, "same_kind")

  if held.keys() != wanted.keys() or not all(map(fits, wanted)):
    return None
  if not grids.are_those_of(pretrained.load_grids(spec), shapes["params"]):
    return None  # To be resized, though the shapes are the same.
  return trees.map_with_names(lambda name, x: np.asarray(held[name], x.dtype), shapes)


def _without_exceptions(recipe: Recipe, spec: str) -> Recipe:
  """Returns the recipe that starts from all of a file: nothing is left out of any model."""
  whole = {key: type(value)() for key, value in vars(recipe).items() if isinstance(value, Load)}
  if hasattr(recipe, "extra"):
    each = {key: type(value)() if isinstance(value, Load) else value for key, value in recipe.extra.items()}
    whole["extra"] = each
  return dataclasses.replace(recipe, model_init=spec, **whole)


def _unset(x: jax.ShapeDtypeStruct) -> np.ndarray:
  """Returns an array of a value that no weights have."""
  return np.full(x.shape, np.nan if jnp.issubdtype(x.dtype, jnp.floating) else np.iinfo(x.dtype).max, x.dtype)


def _is_unset(x: np.ndarray) -> bool:
  if jnp.issubdtype(x.dtype, jnp.floating):
    return bool(np.isnan(np.asarray(x, np.float32)).all())
  return bool((x == np.iinfo(x.dtype).max).all())


def from_checkpoints(workdir: Path, steps: str | None, shapes: TrainState, *, average: bool) -> Iterable[Weights]:
  """Yields the checkpoints of a run: their variables and, where one is kept, the same with the average parameters.

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
    yield Weights(f"step {int(step):,}", functools.partial(_raw, path, shapes))
    if average:
      yield Weights(f"step {int(step):,} ema", functools.partial(_average, path, shapes))


def _raw(path: Path, shapes: TrainState) -> Variables:
  return _restored(path, shapes, average=False).variables


def _average(path: Path, shapes: TrainState) -> Variables:
  state = _restored(path, shapes, average=True)
  where = jax.tree.map(lambda x: x.sharding, shapes.params)
  params = jax.jit(ema.params_of, out_shardings=where)(ema.state_of(state.opt_state), state.params)
  return {**state.variables, "params": params}


def _restored(path: Path, shapes: TrainState, *, average: bool) -> TrainState:
  """Returns a checkpoint's variables, and the average if asked for; moments and the like are left on the disk."""

  def is_average(x: Any) -> bool:
    return isinstance(x, ema.EmaState)

  def kept(x: Any) -> Any:
    return x if average and is_average(x) else jax.tree.map(lambda _: checkpoint_files.LEFT_OUT, x)

  opt_state = jax.tree.map(kept, shapes.opt_state, is_leaf=is_average)
  return checkpoint_files.restore(
    path, dataclasses.replace(shapes, step=checkpoint_files.LEFT_OUT, opt_state=opt_state)
  )
