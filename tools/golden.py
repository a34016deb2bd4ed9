"""Pins the first steps of a project's runs on the digits: `./bazelw run //projects/vit:repin`.

Rewrites projects/<project>/repro/golden.json and prints what moved. //projects/<project>:golden_test compares with
it: a change in core that changes a project's numbers fails that project's test by name. The pins are our own output;
they guard against change and prove nothing right.

The tolerances come from what CPUs do to the run that amplifies rounding most, GSAM's. A Xeon was told by CPUID to be
another CPU, with the features and caches of that. The losses of 30 steps lay this far from the pinned ones, relatively:

    CPU, cores                flags                     losses   top eigenvalue  surrogate gap
    Xeon with AVX-512, 2      none                      5.3e-5   6.478           +0.14 %
    Zen 4, 2                  none                      5.3e-5
    Zen 2 and Haswell, 2      none                      2.0e-5
    Xeon, 2                   --xla_cpu_max_isa=AVX2    2.0e-6   8.193           +0.01 %
    Xeon, 2                   --xla_cpu_max_isa=SSE4_2  2.5e-5   7.556           +0.07 %
    Zen 2, 2                  --xla_cpu_max_isa=SSE4_2  6.6e-5
    Sandy Bridge, 2           --xla_cpu_max_isa=SSE4_2  5.4e-5
    Xeon, 2 and 4             a golden run's            2.1e-5
    Zen 2, 2                  a golden run's            2.1e-5
    Zen 4, 16                 a golden run's            2.1e-5
    Haswell, 1                a golden run's            2.1e-5
    Xeon, 1 thread            a golden run's            1.3e-5
    Zen 2, 1 thread           a golden run's            1.8e-5

With a golden run's flags and its pool of two threads all five are equal to the last bit, parameters included; so are
Haswell and the Xeon for vit's two configs and for distill. No flag does that alone: XLA's own code follows
--xla_cpu_max_isa, its matrix library follows the CPU unless told not to, and a single thread cuts sums by the sizes of
caches. A CPU without AVX2 rounds otherwise all the same. Without flags and with SSE4_2 the losses of vit, mixer, lit
and distill moved by at most 1e-6; no accuracy moved by more than one image. The eigenvalue of trained parameters moves
by a fifth, so it is not pinned.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import contextlib
import dataclasses
import importlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from core import command, files
from core.errors import UserError
from core.recipe import evaluators, load
from core.training import cli, loop, metrics

STEPS = 30
# Relative, of a loss: other CPUs and other numbers of cores moved them by up to 6.6e-5, 1 % more lr by 2e-3.
LOSS_TOLERANCE = 3e-4
GAP_TOLERANCE = 0.02  # Relative, of a surrogate gap: other CPUs moved it by 1.3e-3.
ACCURACY_TOLERANCE = 0.01  # Absolute, of all else.
# Of trained parameters, not of given ones: sharpness_test holds those of given parameters against NumPy's.
UNPINNED = ("top_eigenvalue", "residual", "iterations")

# One way to compute on all CPUs with AVX2, of any number of cores and size of cache.
_XLA_FLAGS = "--xla_cpu_max_isa=AVX2 --xla_cpu_enable_platform_dependent_math=false"
_XLA_THREADS = "2"  # By NPROC, where XLA looks for the size of its pool before it counts cores.

_COMMAND = command.Command("repin --project=NAME", about=__doc__.split("\n", maxsplit=1)[0])
_COMMAND.text("project", "whose runs", shown="NAME", required=True)

Golden = dict[str, dict[str, Any]]


def record(project: str) -> Golden:
  """Returns `{config: {"losses": [of each step], "results": {metric: final value}}}` of a project's digits configs.

  A process that has computed with JAX before keeps the flags and threads that it had then.
  """
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA_FLAGS}"
  os.environ["NPROC"] = _XLA_THREADS
  module = importlib.import_module(f"projects.{project}.train")
  folder = Path(module.__file__).parent
  names = [name for name in cli.configs_of(folder) if name.endswith("digits")]
  return {name: _run(module.TASK, folder / "configs" / f"{name}.py", project) for name in names}


def _run(choice: cli.TaskChoice, file: Path, project: str) -> dict[str, Any]:
  overrides = [("total_steps", str(STEPS)), ("log_training_steps", "1"), ("ckpt_steps", str(STEPS))]
  task, recipe = cli.read_recipe(choice, load.read(str(file), overrides))
  # Towards an eigenvalue that is not pinned one step is enough.
  evals = {
    key: dataclasses.replace(each, max_iterations=1) if isinstance(each, evaluators.Sharpness) else each
    for key, each in recipe.evals.items()
  }
  recipe = dataclasses.replace(recipe, evals=evals)
  with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
    results = loop.run(task(recipe), recipe, Path(workdir), project=project, name=file.stem)
    log = metrics.read(Path(workdir) / "metrics.jsonl")
  return {"losses": [line["training_loss"] for line in log if "training_loss" in line], "results": pinnable(results)}


def pinnable(results: dict[str, float]) -> dict[str, float]:
  """Returns what of an evaluation's metrics is the same on every CPU, within the tolerances."""
  return {key: value for key, value in results.items() if key.rpartition("/")[2] not in UNPINNED}


def differences(pinned: Golden, found: Golden, *, exact: bool = False) -> list[str]:
  """Returns one line for every number that is not what was pinned, within the tolerances unless `exact`."""
  lines = [f"{name}: {'not pinned yet' if name in found else 'gone'}" for name in sorted(pinned.keys() ^ found.keys())]
  for name in sorted(pinned.keys() & found.keys()):
    old, new = (_flat(golden[name]) for golden in (pinned, found))
    for key in [*old, *(key for key in new if key not in old)]:
      a, b = old.get(key), new.get(key)
      if a is None or b is None or not _close(key, a, b, exact):
        lines.append(f"{name} {key}: {b}, pinned {a}")
  return lines


def _flat(run: dict[str, Any]) -> dict[str, float]:
  return {f"loss of step {n}": loss for n, loss in enumerate(run["losses"], 1)} | run["results"]


def _close(key: str, a: float, b: float, exact: bool) -> bool:
  if exact:
    return a == b
  if key.endswith("surrogate_gap"):
    return abs(a - b) <= GAP_TOLERANCE * abs(a)
  return abs(a - b) <= (LOSS_TOLERANCE * abs(a) if "loss" in key else ACCURACY_TOLERANCE)


def main(argv: Sequence[str]) -> int:
  """Runs a project's digits configs, writes what they give and prints what moved; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  jax.config.update("jax_platforms", "cpu")
  if (checkout := os.environ.get("BUILD_WORKSPACE_DIRECTORY")) is None:  # Bazel sets it.
    raise UserError(f"it writes to the checkout, which ./bazelw run //projects/{flags.project}:repin tells it")
  path = Path(checkout, "projects", flags.project, "repro", "golden.json")
  pinned = json.loads(path.read_text()) if path.exists() else {}
  found = record(flags.project)
  moved = differences(pinned, found, exact=True)
  path.parent.mkdir(exist_ok=True)
  with files.replacing(path) as file:
    file.write(f"{json.dumps(found, indent=1)}\n".encode())
  print("\n".join(moved) if moved else f"{flags.project}: nothing moved")
  return 0


if __name__ == "__main__":
  command.run(main)
