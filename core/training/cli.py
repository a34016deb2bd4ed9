"""The command line of every trainer: `train --config=FILE.py[:args] [--config.KEY=VALUE ...] [--workdir=DIR]`."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import yaml

from core import command, files, signals
from core.cluster import preemption, process_environment, processes
from core.errors import UserError, cut, nearest
from core.masking import masked, masked_tree
from core.recipe import document, load
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.recipe.write import to_config
from core.tasks.task import Task
from core.training import dry_run, loop, parts, provenance

EXIT_NON_FINITE = 3

# A task, or what picks one by the config as its file gives it.
TaskChoice = type[Task] | Callable[[Mapping[str, Any]], type[Task]]


def main(task: TaskChoice, *, project: Path, default: str, argv: Sequence[str] | None = None) -> None:
  """Runs a trainer from its command line and exits; every expected failure is one line and its own exit status.

  Args:
    task: the project's.
    project: the project's folder, where `configs/` is.
    default: name of the config used when none is given.
    argv: arguments; those of the process by default.
  """
  command.run(lambda words: _train(task, project, default, words), argv)


def _command(project: Path) -> command.Command:
  names = ", ".join(configs_of(project))
  made = command.Command("train [--config=FILE.py[:ARGS]] [--config.KEY=VALUE ...] [--workdir=DIR]", configs=True)
  made.text(
    "config", f"the hyper-parameters; a bare NAME is one of this project's configs: {names}", shown="FILE.py:ARGS"
  )
  made.text(
    "workdir", "where the run's results lie; start again with the same to resume (default: runs/...)", shown="DIR"
  )
  made.switch("dry_run", "check everything and show what would run, its parameters and its memory; write nothing")
  made.choice("print_config", ("yaml", "json"), "print the whole config with its defaults, and end")
  made.switch("keys", "show every key of a config with its type and default, and end")
  define_jax(made)
  made.text("coordinator", "one of N processes that train one job together; not needed on TPU VMs, GKE, SLURM and "
            "Open MPI, which tell", shown="HOST:PORT")  # fmt: skip
  made.text("process_id", "which of them this is, from 0", shown="I")
  made.text("processes", "how many they are; 1 trains alone whatever the machine says", shown="N")
  made.whole("lost_after", "seconds without a sign of life of a process, after which the others end "
             f"(default: {processes.LOST_AFTER})")  # fmt: skip
  return made


def _train(choice: TaskChoice, project: Path, default: str, argv: Sequence[str]) -> int:
  flags, overrides = _command(project).parse(argv)
  spec = config_spec(flags.config or default, project)
  task, recipe = read_recipe(choice, load.read(spec, overrides))
  name = Path(spec.partition(":")[0]).stem
  if flags.keys:
    print(document.table(task.Recipe))
    return 0
  if flags.print_config:
    config = masked_tree(to_config(recipe))
    print(
      json.dumps(config, indent=2) if flags.print_config == "json" else yaml.safe_dump(config, sort_keys=False), end=""
    )
    return 0
  given = {key: str(flags.given[key]) for key in process_environment.FLAGS if key in flags.given}
  process = process_environment.detect(given, os.environ, process_environment.tpu_vm(os.environ))
  if process and not flags.workdir:
    raise UserError("several processes share one --workdir=DIR; give it to each of them")
  workdir = files.from_here(flags.workdir or f"runs/{project.name}-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
  start_jax(flags, None if flags.dry_run else workdir)
  if flags.dry_run:
    print(masked(dry_run.describe(task(recipe), recipe, title=f"{project.name} {name}")))
    return 0

  def run() -> int:
    try:
      loop.run(task(recipe), recipe, workdir, project=project.name, name=name)
    except preemption.Preempted as stop:
      again = {**flags.given, **{f"config.{key}": value for key, value in overrides}, "workdir": workdir}
      print(f"{stop}: {shlex.join(masked(f'--{name}={value}') for name, value in again.items())}", file=sys.stderr)
      return stop.status
    except parts.NonFiniteLoss as error:
      print(f"error: {error}", file=sys.stderr)
      return EXIT_NON_FINITE
    except OSError as error:
      command.say(f"error: {error}; run: {workdir}")
      return 1
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      command.say(f"error: {_too_large(error)}; run: {workdir}")
      return 1
    return signals.STATUS.get(signals.noted(), 0)  # A signal that came when all was done still ends what would follow.

  return processes.run_as_one_job(
    process,
    run,
    facts=_facts(recipe, project, workdir) if process else {},
    advice=f"start all again with --workdir={workdir} to resume",
    lost_after=flags.lost_after or processes.LOST_AFTER,
  )


def _too_large(error: jax.errors.JaxRuntimeError) -> str:
  """Returns what to say of a run that the memory of its devices does not hold."""
  reason = cut(str(error).splitlines()[0].strip(), 100)
  return (
    f"the memory of a device does not hold the run ({reason}); take a smaller config.input.batch_size, or the batch in "
    "parts by config.grad_accum_steps; --dry_run shows what is needed"
  )


def read_recipe(choice: TaskChoice, config: Mapping[str, Any]) -> tuple[type[Task], Recipe]:
  """Returns the task that a plain config is for, and the config as the recipe of that task.

  Raises:
    UserError: an entry that does not fit.
  """
  task = choice if isinstance(choice, type) else choice(config)
  return task, parse(task.Recipe, config)


def _facts(recipe: Recipe, project: Path, workdir: Path) -> dict[str, Any]:
  """Returns what all processes of a job must have alike."""
  return {
    "config": masked_tree(to_config(recipe)),  # It travels over the network, and is compared in lines for people.
    "code": provenance.sources(project),
    "packages": provenance.versions(),
    "workdir": str(workdir),
  }


def configs_of(project: Path) -> list[str]:
  """Returns the names of the configs in a project's folder."""
  return sorted(path.stem for path in (project / "configs").glob("*.py") if not path.stem.endswith("_test"))


def config_spec(spec: str, project: Path) -> str:
  """Returns the config's file: a path from where the person stands or from the checkout, or a name in the project.

  Raises:
    UserError: there is none.
  """
  configs = configs_of(project)
  file, colon, arg = spec.partition(":")
  if not file.endswith(".py"):
    if file not in configs:
      raise UserError(f"config: {project.name} has no config {file!r}{nearest(file, configs)}; or give a FILE.py")
    return f"{project / 'configs' / file}.py{colon}{arg}"
  for path in (Path(files.from_here(file)), project.parent.parent / file):
    if path.is_file():
      return f"{path}{colon}{arg}"
  raise UserError(f"config: no file {file!r}; {project.name} has: {', '.join(configs)}")


def define_jax(made: command.Command) -> None:
  """Declares the flags that `start_jax` reads."""
  made.whole("cpu_devices", "pretend that this machine's CPU is N devices")
  made.text("cache_dir", "compiled programs, shared by runs (default: .jax_cache beside the workdir)", shown="DIR")


def start_jax(flags: Any, workdir: Path | None) -> None:
  """Settles devices and the compilation cache, before anything is computed.

  Args:
    flags: those of `define_jax`.
    workdir: beside which compiled programs are kept where no flag says where; None keeps none then.
  """
  if flags.cpu_devices:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", flags.cpu_devices)
  if not flags.cache_dir and workdir is None:
    return
  beside = Path(files.from_here("runs/run")) if files.is_remote(workdir) else workdir
  cache = files.from_here(flags.cache_dir) if flags.cache_dir else beside.parent / ".jax_cache"
  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
