"""Evaluates weights without training: any evaluator of any config, on any weights, and on checkpoints of a run.

./bazelw run //tools:evaluate -- --config=projects/vit/configs/digits.py --weights=params.npz,other.safetensors
./bazelw run //tools:evaluate -- --workdir=runs/first --steps=all
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core import config as config_lib
from core import files, sharding
from core.data import feed
from core.errors import UserError, nearest
from core.evaluators import registry
from core.state import TrainState
from core.training import cli, progress, state_init
from tools import subject

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


def main(argv: Sequence[str]) -> int:
  flags, overrides = cli.parse(argv, _FLAGS)
  if "help" in flags or not flags:
    print(_USAGE)
    return 0
  if ("weights" in flags) == ("workdir" in flags):
    raise UserError("give one of --weights=... and --workdir=...; see --help")
  workdir = files.from_here(flags["workdir"]) if "workdir" in flags else None
  project, config = subject.read_config(flags, overrides, workdir)
  default = f"runs/evaluate-{project}-{time.strftime('%Y%m%d-%H%M%S')}.json"
  output = files.from_here(flags.get("output") or (workdir / "evaluate.json" if workdir else default))
  cli.start_jax(flags, workdir or output)

  make_task = subject.trainer(project).make_task
  mesh = sharding.make_mesh(config.get("mesh", sharding.AUTO))
  rules = config.get("sharding_rules", ())
  batch_sharding = sharding.batch_sharding(mesh, rules)
  task = make_task(config)
  predict = task.predict  # Once: evaluators of one prediction share its program.
  written = output.with_suffix("") / ".unfinished"  # Where evaluators write files, before each subject has a folder.
  evals = {
    name: registry.make(
      name,
      config.evals[name],
      predict=predict,
      sharding=batch_sharding,
      output_dir=written,
      batch_size=config.get("input", {}).get("batch_size"),
    )
    for name in _chosen(config, flags)
  }
  results = []
  with sharding.activations(mesh, rules):  # Checked and run by one trace.
    batch = feed.put(next(iter(next(iter(evals.values())).data)), batch_sharding)
    shapes = state_init.abstract_without_schedules(task, config, mesh, batch)
    for name, evaluator in evals.items():
      with registry.named(name):
        evaluator.check(shapes)
    if workdir:
      subjects = subject.checkpoints(workdir, flags.get("steps"), shapes, average=bool(config.get("ema")))
    else:
      subjects = subject.weights(flags["weights"], config, make_task, shapes, batch)
    for each in subjects:
      print(f"evaluating {each.name}", file=sys.stderr, flush=True)
      state = TrainState.create(each.params(), ())
      results.append({"weights": each.name} | _run(evals, state))
      if written.is_dir():
        _put_away(written, re.sub(r"[^\w.]+", "_", each.name))
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


def _chosen(config: ConfigDict, flags: Mapping[str, str]) -> list[str]:
  known = list(config.get("evals", {}))
  chosen = flags["evals"].split(",") if "evals" in flags else known
  if not chosen:
    raise UserError("the config has no evals; add some by --config.evals.NAME.type=... or choose another config")
  for name in chosen:
    if name not in known:
      raise UserError(f"--evals: the config has no eval {name!r}{nearest(name, known)}")
  return chosen


if __name__ == "__main__":
  cli.exit_with(lambda: main(sys.argv[1:]))
