"""Compiles a project's real step for devices that need not be there, and tells what it will need and do on them.

./bazelw run //tools/aot -- --config=projects/vit/configs/scaling.py:variant=g/14 --topology=v5p:8x16x16
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from core import files
from core.errors import UserError
from core.training import cli
from tools import subject
from tools.aot import chips, program, report

_USAGE = """\
usage: aot --config=FILE.py[:ARGS] --topology=NAME [options]

  --config=FILE.py:ARGS  a project's config
  --config.KEY=VALUE     change one entry, e.g. --config.model.remat_policy=none
  --topology=NAME        {topologies}
  --step=train|eval      the training step, or a prediction of evaluators (eval:NAME for another than "predict")
  --example=KEY:DTYPE[SIZES],...
                         shapes of an example after preprocessing, image:float32[224,224,3] say, where the data are
                         neither here nor known to TFDS
  --data_size=N          examples of the training data; only the schedule depends on it (default: {data_size:,})
  --project=NAME         whose config it is, where it lies outside of projects/NAME
  --hlo=FILE             write the compiled program, as XLA prints it
  --json                 print JSON instead of a table
"""
_FLAGS = ("config", "topology", "step", "example", "data_size", "project", "hlo", "json", "help")
_SWITCHES = ("--json",)
_DATA_SIZE = 1_281_167  # ImageNet-1k's training split.


def main(argv: Sequence[str]) -> int:
  flags, overrides = cli.parse([f"{word}=" if word in _SWITCHES else word for word in argv], _FLAGS)
  if "help" in flags or not flags:
    print(_USAGE.format(topologies=chips.known(), data_size=_DATA_SIZE))
    return 0
  for name in ("config", "topology"):
    if name not in flags:
      raise UserError(f"flag --{name} is missing; see --help")
  found = compile_and_report(flags, overrides)
  if "json" in flags:
    print(json.dumps(found, indent=1))
  else:
    print(report.sharding_table(found), report.temporaries_table(found), report.table(found), sep="\n\n")
  return 0


def compile_and_report(flags: Mapping[str, str], overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
  """The report of one config on one topology."""
  settle_jax(flags["topology"])
  project, config = subject.read_config(flags, overrides)
  topology = chips.topology(flags["topology"])
  step = program.make_step(
    subject.trainer(project).make_task,
    config,
    topology,
    flags.get("step", "train"),
    example=flags.get("example"),
    data_size=int(flags.get("data_size", _DATA_SIZE)),
  )
  compiled = program.compile_step(step)
  if "hlo" in flags:
    files.from_here(flags["hlo"]).write_text(compiled.program.as_text())
  found = report.measure(compiled, topology)
  return {"config": flags["config"], "overrides": dict(overrides), "step": flags.get("step", "train"), **found}


def settle_jax(topology: str) -> None:
  """A TPU's compiler works beside the CPU and looks for no TPU: it asks no machine for one, nor needs it for itself."""
  os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"})
  for name, value in {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
    os.environ.setdefault(name, value)  # Any will do: without, the compiler complains that it cannot find them out.
  if not topology.startswith("gpu"):
    jax.config.update("jax_platforms", "cpu")


if __name__ == "__main__":
  cli.exit_with(lambda: main(sys.argv[1:]))
