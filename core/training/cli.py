"""The command line of every trainer: `train --config=FILE.py[:args] [--config.KEY=VALUE ...] [--workdir=DIR]`."""

import json
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from core import config as config_lib
from core import files
from core.cluster import preemption, process_environment, processes
from core.errors import EXIT_USER_ERROR, UserError, nearest
from core.training import loop, provenance

_USAGE = """\
usage: train [--config=FILE.py[:ARGS]] [--config.KEY=VALUE ...] [--workdir=DIR] [options]

  --config=FILE.py:ARGS   the run's hyper-parameters; a bare NAME is one of this project's configs:
                          {configs}
  --config.KEY=VALUE      change one of them, e.g. --config.lr=3e-4 --config.input.batch_size=64
  --workdir=DIR           where the run's results lie; start again with the same to resume (default: runs/...)

  --cpu_devices=N         pretend that this machine's CPU is N devices
  --cache_dir=DIR         compiled programs, shared by runs (default: .jax_cache beside the workdir)
  --coordinator=HOST:PORT --process_id=I --processes=N
                          one of N processes that train one job together, each started with its own I; not needed on
                          TPU VMs, GKE, SLURM and Open MPI, which tell; --processes=1 trains alone all the same
  --lost_after=SECONDS    without a sign of life of a process, after which the others end (default: 60)
"""
_FLAGS = ("config", "workdir", "cpu_devices", "cache_dir", *process_environment.FLAGS, "lost_after", "help")

EXIT_NON_FINITE = 3


def main(
  make_task: Callable[[ConfigDict], object], *, project: Path, default: str, argv: Sequence[str] | None = None
) -> None:
  """Runs a trainer from its command line and exits; every expected failure is one line and its own exit status.

  Args:
    make_task: the project's task for a config.
    project: the project's folder, where `configs/` is.
    default: name of the config used when none is given.
    argv: arguments; those of the process by default.
  """
  exit_with(lambda: _train(make_task, project, default, sys.argv[1:] if argv is None else argv))


def exit_with(program: Callable[[], int]) -> None:
  """Runs a program and exits with the status it returns; a `UserError` is one line and status 2."""
  quiet()
  try:
    status = program()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    status = EXIT_USER_ERROR
  sys.stdout.flush()
  sys.exit(status)


def _train(make_task: Callable, project: Path, default: str, argv: Sequence[str]) -> int:
  flags, overrides = parse(argv, _FLAGS)
  configs = configs_of(project)
  if "help" in flags:
    print(_USAGE.format(configs=", ".join(configs)))
    return 0
  spec = config_spec(flags.get("config", default), project)
  config = config_lib.load(spec, overrides)
  name = Path(spec.partition(":")[0]).stem
  place = process_environment.detect(flags, os.environ, process_environment.tpu_vm(os.environ))
  if place and "workdir" not in flags:
    raise UserError("several processes share one --workdir=DIR; give it to each of them")
  workdir = files.from_here(flags.get("workdir") or f"runs/{project.name}-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
  start_jax(flags, workdir)

  def run() -> int:
    try:
      loop.run(make_task(config), config, workdir, project=project.name, name=name)
    except preemption.Preempted as stop:
      again = {**flags, **{f"config.{key}": value for key, value in overrides}, "workdir": workdir}
      print(f"{stop}: {shlex.join(f'--{name}={value}' for name, value in again.items())}", file=sys.stderr)
      return preemption.EXIT_CODE
    except loop.NonFiniteLoss as error:
      print(f"error: {error}", file=sys.stderr)
      return EXIT_NON_FINITE
    except OSError as error:
      print(f"error: {error}; run: {workdir}", file=sys.stderr)
      return 1
    return 0

  return processes.run_as_one_job(
    place,
    run,
    facts=_facts(config, project, workdir) if place else {},
    advice=f"start all again with --workdir={workdir} to resume",
    lost_after=_int(flags, "lost_after", default=processes.LOST_AFTER),
  )


def _facts(config: ConfigDict, project: Path, workdir: Path) -> dict[str, Any]:
  """What all processes of a job must have alike."""
  return {
    "config": json.loads(config_lib.to_json(config)),
    "code": provenance.sources(project),
    "packages": provenance.versions(),
    "workdir": str(workdir),
  }


def parse(argv: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
  """Splits the arguments into flags and config overrides; `--flag value` and `--flag=value` both do.

  Raises:
    UserError: a flag that is not `known`, one without a value, or a word that is no flag.
  """
  flags: dict[str, str] = {}
  overrides: list[tuple[str, str]] = []
  rest = list(argv)
  while rest:
    word = rest.pop(0)
    if word in ("-h", "--help"):
      return {"help": ""}, []
    name, equals, value = word.removeprefix("--").partition("=")
    if not word.startswith("--"):
      raise UserError(f"argument {word!r} is not a flag; flags begin with --")
    if not equals:
      if not rest:
        raise UserError(f"flag --{name} needs a value: --{name}=...")
      value = rest.pop(0)
    if name.startswith("config."):
      overrides.append((name.removeprefix("config."), value))
    elif name in known:
      flags[name] = value
    else:
      raise UserError(f"flag --{name} is unknown{nearest(name, known)}")
  return flags, overrides


def configs_of(project: Path) -> list[str]:
  """Names of the configs in a project's folder."""
  return sorted(path.stem for path in (project / "configs").glob("*.py") if not path.stem.endswith("_test"))


def config_spec(spec: str, project: Path) -> str:
  """Finds the config's file: a path from where the person stands or from the checkout, or a name in the project.

  Raises:
    UserError: there is none.
  """
  configs = configs_of(project)
  file, colon, arg = spec.partition(":")
  if not file.endswith(".py"):
    if file not in configs:
      raise UserError(f"config: {project.name} has no config {file!r}{nearest(file, configs)}; or give a FILE.py")
    return f"{project / 'configs' / file}.py{colon}{arg}"
  for path in (files.from_here(file), project.parent.parent / file):
    if path.is_file():
      return f"{path}{colon}{arg}"
  raise UserError(f"config: no file {file!r}; {project.name} has: {', '.join(configs)}")


def start_jax(flags: dict[str, str], workdir: Path) -> None:
  """Settles devices and the compilation cache, before anything is computed."""
  if "cpu_devices" in flags:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _int(flags, "cpu_devices"))
  cache = files.from_here(flags["cache_dir"]) if "cache_dir" in flags else workdir.parent / ".jax_cache"
  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _int(flags: dict[str, str], name: str, default: int | None = None) -> int:
  if name not in flags and default is not None:
    return default
  if not flags.get(name, "").isdigit() or int(flags[name]) == 0:
    raise UserError(f"flag --{name} must be a whole number above 0, got {flags.get(name)!r}")
  return int(flags[name])


def quiet() -> None:
  """Keeps the libraries' own chatter off the screen; errors still show."""
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  logging.getLogger("jax").setLevel(logging.ERROR)
  # A checkpoint that fails is said in one line by us; Orbax and asyncio would log a traceback for each array.
  for name in ("absl", "orbax", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
  warnings.filterwarnings("ignore", module="(tensorflow|tensorflow_datasets|orbax|flax|keras)")
