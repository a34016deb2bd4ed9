"""Evaluates weights without training: any evaluator of any config, on any weights, and on checkpoints of a run.

./bazelw run //tools:evaluate -- --config=projects/vit/configs/digits.py --weights=params.npz,other.safetensors
./bazelw run //tools:evaluate -- --workdir=runs/first --steps=all
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core import command, files, sharding
from core.data import feed
from core.errors import UserError, nearest
from core.masking import masked_tree
from core.recipe.recipe import Recipe, metric_prefix
from core.recipe.write import to_config
from core.state import Variables
from core.training import cli, progress, state_init
from core.training.prepare import check_evaluators, make_evaluators
from tools import trained_model

_COMMAND = command.Command(
  "evaluate --config=FILE.py[:ARGS] --weights=W[,W...] [options]\n"
  "       evaluate --workdir=DIR [--steps=all|S,S,...] [options]",
  configs=True,
)
trained_model.define_flags(_COMMAND)
_COMMAND.text("weights", "files or published names, all that the config's model_init may be", shown="W,W")
_COMMAND.text("steps", "all checkpoints of the run, or those of these steps", shown="all")
_COMMAND.text("evals", "which of the config's evals; all by default", shown="NAME,NAME")
_COMMAND.text(
  "output",
  "where the JSON goes; default: evaluate.json in the workdir, or runs/evaluate-...; files that evaluators write "
  "(save, per_class) go to FILE/WEIGHTS/EVAL/",
  shown="FILE.json",
)
cli.define_jax(_COMMAND)


def main(argv: Sequence[str]) -> int:
  """Evaluates, prints a table and writes a JSON file; returns the exit status."""
  flags, overrides = _COMMAND.parse(argv or ["--help"])
  if bool(flags.weights) == bool(flags.workdir):
    raise UserError("give one of --weights=... and --workdir=...; see --help")
  workdir = files.from_here(flags.workdir) if flags.workdir else None
  project, task, recipe = trained_model.read_recipe(flags, overrides, workdir)
  default = f"runs/evaluate-{project}-{time.strftime('%Y%m%d-%H%M%S')}.json"
  output = files.from_here(flags.output or (workdir / "evaluate.json" if workdir else default))
  cli.start_jax(flags, workdir or output)

  mesh = sharding.make_mesh(recipe.mesh)
  batch_sharding = sharding.batch_sharding(mesh, recipe.sharding_rules)
  task = task(recipe)
  written = (
    output.with_suffix("") / ".unfinished"
  )  # Where evaluators write files, before each of the weights has a folder.
  evals = make_evaluators(
    recipe, task.predict, batch_sharding=batch_sharding, output_dir=written, names=_chosen(recipe, flags.evals)
  )
  batch = feed.put(next(iter(next(iter(evals.values())).data)), batch_sharding)
  placement = state_init.place(task, recipe, batch, mesh=mesh)
  check_evaluators(evals, placement)
  results = []
  with placement.activations():
    if workdir:
      found = trained_model.from_checkpoints(workdir, flags.steps, placement.shapes, average=recipe.ema is not None)
    else:
      found = trained_model.from_files(flags.weights, placement)
    for each in found:
      command.say(f"evaluating {each.name}")
      results.append({"weights": each.name} | _run(evals, recipe, each.variables()))
      if written.is_dir():
        _put_away(written, re.sub(r"[^\w.]+", "_", each.name))
  output.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(output) as file:
    report = {"project": project, "config": masked_tree(to_config(recipe)), "results": results}
    file.write(f"{json.dumps(report, indent=1)}\n".encode())
  print(table(results))
  print(f"written to {output}")
  return 0


def table(results: Sequence[Mapping[str, Any]]) -> str:
  """Returns a row a metric and a column for each of the weights; of more weights than metrics, the other way round."""
  names = list(dict.fromkeys(key for found in results for key in found if key != "weights"))

  def shown(found: Mapping[str, Any], name: str) -> str:
    return progress.format_metric(name, found[name]) if name in found else ""

  rows = [["", *names]] + [[found["weights"], *(shown(found, name) for name in names)] for found in results]
  if len(results) <= len(names):
    rows = [list(column) for column in zip(*rows)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  aligned = [[row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))] for row in rows]
  return "\n".join("  ".join(row).rstrip() for row in aligned)


def _run(evals: Mapping[str, Any], recipe: Recipe, variables: Variables) -> dict[str, float]:
  prefixes = {name: metric_prefix(name, recipe.evals[name]) for name in evals}
  return {f"{prefixes[name]}{key}": value for name, each in evals.items() for key, value in each.run(variables).items()}


def _put_away(written: Path, name: str) -> None:
  """Gives what the evaluators wrote for one of the weights a folder of its own."""
  place = written.with_name(name)
  shutil.rmtree(place, ignore_errors=True)
  written.rename(place)


def _chosen(recipe: Recipe, names: str | None) -> list[str]:
  chosen = names.split(",") if names else list(recipe.evals)
  if not chosen:
    raise UserError("the config has no evals; add some by --config.evals.NAME.type=... or choose another config")
  for name in chosen:
    if name not in recipe.evals:
      raise UserError(f"--evals: the config has no eval {name!r}{nearest(name, recipe.evals)}")
  return chosen


if __name__ == "__main__":
  command.run(main)
