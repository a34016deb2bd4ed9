"""Compiles a project's real step for devices that need not be there, and tells what it will need and do on them.

./bazelw run //tools/aot -- --config=projects/vit/configs/scaling.py:variant=g/14 --topology=v5p:8x16x16
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence

import jax

from core import files
from core.errors import UserError
from core.training import cli
from tools import subject
from tools.aot import chips, compare, fit, program, report

_USAGE = """\
usage: aot --config=FILE.py[:ARGS] --topology=NAME [options]

  --config=FILE.py:ARGS   a project's config
  --config.KEY=VALUE      change one entry, e.g. --config.model.remat_policy=none
  --topology=NAME         {topologies}
  --step=train|eval       the training step, or the prediction of evaluators (eval:NAME for another than "predict")
  --example=KEY:DTYPE[SIZES],...
                          shapes of an example after preprocessing, image:float32[224,224,3] say, where the data are
                          neither here nor known to TFDS
  --data_size=N           examples of the training data; only the schedule depends on it (default: {data_size:,})
  --project=NAME          whose config it is, where it lies outside of projects/NAME
  --compare=FILE.py:ARGS  another config of the same project, side by side
  --compare_revision=REV  the same config at another revision of this repository, side by side
  --hlo=FILE              write the compiled program, as XLA prints it
  --json                  print JSON instead of a table
"""
_FLAGS = (
  *("config", "topology", "step", "example", "data_size", "project", "compare", "compare_revision", "hlo", "json"),
  "help",
)
_DATA_SIZE = 1_281_167  # ImageNet-1k's training split.


def main(argv: Sequence[str]) -> int:
  flags, overrides = cli.parse([f"{word}=" if word == "--json" else word for word in argv], _FLAGS)
  if "help" in flags or not flags:
    print(_USAGE.format(topologies=chips.known(), data_size=_DATA_SIZE))
    return 0
  for name in ("config", "topology"):
    if name not in flags:
      raise UserError(f"flag --{name} is missing; see --help")
  if "compare" in flags and "compare_revision" in flags:
    raise UserError("give one of --compare and --compare_revision")
  settle_jax(flags["topology"])
  named = []
  if revision := flags.get("compare_revision"):
    kept = {key: value for key, value in flags.items() if key not in ("compare_revision", "hlo", "json")}
    kept |= {f"config.{key}": value for key, value in overrides}
    named.append((revision, compare.at_revision(revision, [f"--{key}={value}" for key, value in kept.items()])))
  named.append(("now" if named else flags["config"], compile_and_report(flags, overrides)))
  if other := flags.get("compare"):
    named.append((other, compile_and_report({**flags, "config": other}, overrides)))
  names, found = zip(*named)
  if "json" in flags:
    print(json.dumps(found[0] if len(found) == 1 else found, indent=1))
  elif len(found) == 2:
    print(compare.table(*found, names=names))
  else:
    print(*(show(found[0]) for show in (report.sharding_table, report.temporaries_table, report.table)), sep="\n\n")
  return 0


def compile_and_report(flags: Mapping[str, str], overrides: Sequence[tuple[str, str]]) -> report.Report:
  """The report of one config on one topology.

  Raises:
    UserError: a mistake in the config or the flags, or a step that does not fit the memory of its devices.
  """
  project, config = subject.read_config(flags, overrides)
  topology = chips.topology(flags["topology"])
  kind = flags.get("step", "train")
  data_size = flags.get("data_size", str(_DATA_SIZE))
  if not data_size.isdigit():
    raise UserError(f"flag --data_size must be a whole number, got {data_size!r}")
  make_task = subject.trainer(project).make_task
  step = program.make_step(make_task, config, topology, kind, example=flags.get("example"), data_size=int(data_size))
  arguments = report.describe(step, topology)["arguments"]
  refuse = lambda temporaries, hbm: fit.refusal(step, config, topology, arguments, temporaries, hbm)
  try:
    compiled = program.compile_step(step)
  except program.OutOfMemory as error:
    raise UserError(refuse(error.needed or 0.0, error.there or topology.hbm or 0.0)) from None
  if "hlo" in flags:
    files.from_here(flags["hlo"]).write_text(compiled.text)
  found = report.measure(compiled, topology)
  if topology.hbm and found["memory"]["peak"] > topology.hbm:
    raise UserError(refuse(found["memory"]["temporaries"], topology.hbm))
  return {"config": flags["config"], "overrides": dict(overrides), "step": kind, **found}


def settle_jax(topology: str) -> None:
  """A TPU's compiler works beside the CPU and looks for no TPU: it asks no machine for one, nor needs it for itself."""
  os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"})
  for name, value in {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
    os.environ.setdefault(name, value)  # Any will do: without, the compiler complains that it cannot find them out.
  if not topology.startswith("gpu"):
    jax.config.update("jax_platforms", "cpu")


if __name__ == "__main__":
  cli.exit_with(lambda: main(sys.argv[1:]))
