"""Pins the first steps of a project's runs on the digits: `./bazelw run //projects/vit:repin`.

Rewrites projects/<project>/repro/golden.json and prints what moved. //projects/<project>:golden_test compares with
it: a change in core that changes a project's numbers fails that project's test by name. The pins are our own output;
they guard against change and prove nothing right.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax

from core import config as config_lib
from core import files
from core.training import cli, loop, metrics

STEPS = 30
# Relative, of a loss: other vector instructions and one core instead of two moved them by 7e-7, 1 % more lr by 2e-3.
LOSS_TOLERANCE = 3e-4
ACCURACY_TOLERANCE = 0.01  # Absolute, of all else.

Golden = dict[str, dict[str, Any]]


def record(project: str) -> Golden:
  """`{config: {"losses": [of each step], "results": {metric: final value}}}` of every digits config of a project."""
  module = importlib.import_module(f"projects.{project}.train")
  folder = Path(module.__file__).parent
  names = [name for name in cli.configs_of(folder) if name.endswith("digits")]
  return {name: _run(module.make_task, folder / "configs" / f"{name}.py", project) for name in names}


def _run(make_task, file: Path, project: str) -> dict[str, Any]:
  overrides = [("total_steps", str(STEPS)), ("log_training_steps", "1"), ("ckpt_steps", str(STEPS))]
  config = config_lib.load(str(file), overrides)
  with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
    results = loop.run(make_task(config), config, Path(workdir), project=project, name=file.stem)
    log = metrics.read(Path(workdir) / "metrics.jsonl")
  return {"losses": [line["training_loss"] for line in log if "training_loss" in line], "results": results}


def differences(pinned: Golden, found: Golden, *, exact: bool = False) -> list[str]:
  """One line for every number that is not what was pinned, within the tolerances unless `exact`."""
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
  return abs(a - b) <= (LOSS_TOLERANCE * abs(a) if "loss" in key else ACCURACY_TOLERANCE)


def main() -> None:
  parser = argparse.ArgumentParser(prog="repin", description=__doc__.split("\n")[0])
  parser.add_argument("--project", required=True)
  project = parser.parse_args().project
  cli.quiet()
  jax.config.update("jax_platforms", "cpu")
  path = Path(os.environ["BUILD_WORKSPACE_DIRECTORY"], "projects", project, "repro", "golden.json")
  pinned = json.loads(path.read_text()) if path.exists() else {}
  found = record(project)
  moved = differences(pinned, found, exact=True)
  path.parent.mkdir(exist_ok=True)
  with files.replacing(path) as file:
    file.write(f"{json.dumps(found, indent=1)}\n".encode())
  print("\n".join(moved) if moved else f"{project}: nothing moved")


if __name__ == "__main__":
  main()
