"""Compiles a project's real step for devices that need not be there, and tells what it will need and do on them.

./bazelw run //tools/aot -- --config=projects/vit/configs/scaling.py:variant=g/14 --topology=v5p:8x16x16
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import os
from collections.abc import Sequence

import jax

from core import command, files
from core.errors import UserError
from core.masking import masked_tree
from tools import trained_model
from tools.aot import chips, compare, fit, program, report

_DATA_SIZE = 1_281_167  # ImageNet-1k's training split.

_COMMAND = command.Command("aot --config=FILE.py[:ARGS] --topology=NAME [options]", configs=True)
_COMMAND.text("config", "a project's config", shown="FILE.py:ARGS", required=True)
_COMMAND.text("topology", chips.known(), shown="NAME", required=True)
_COMMAND.text(
  "step",
  'the training step, or the prediction of evaluators (eval:NAME for another than "predict")',
  default="train",
  shown="train|eval",
)
_COMMAND.text(
  "example",
  "shapes of an example after preprocessing, image:float32[224,224,3] say, where the data are neither here nor known "
  "to TFDS",
  shown="KEY:DTYPE[SIZES],...",
)
_COMMAND.whole(
  "data_size",
  f"examples of the training data; only the schedule depends on it (default: {_DATA_SIZE:,})",
  default=_DATA_SIZE,
)
_COMMAND.text("project", "whose config it is, where it lies outside of projects/NAME", shown="NAME")
_COMMAND.text("compare", "another config of the same project, side by side", shown="FILE.py:ARGS")
_COMMAND.text("compare_revision", "the same config at another revision of this repository, side by side", shown="REV")
_COMMAND.text("hlo", "write the compiled program, as XLA prints it", shown="FILE")
_COMMAND.switch("json", "print JSON instead of a table")


def main(argv: Sequence[str]) -> int:
  """Compiles, and prints a report; returns the exit status."""
  flags, overrides = _COMMAND.parse(argv or ["--help"])
  if flags.compare and flags.compare_revision:
    raise UserError("give one of --compare and --compare_revision")
  settle_jax(flags.topology)
  named = []
  if flags.compare_revision:
    kept = {key: value for key, value in flags.given.items() if key not in ("compare_revision", "hlo", "json")}
    kept |= {f"config.{key}": value for key, value in overrides}
    arguments = [f"--{key}={value}" for key, value in kept.items()]
    named.append((flags.compare_revision, compare.at_revision(flags.compare_revision, arguments)))
  options = dict(step=flags.step, project=flags.project, example=flags.example, data_size=flags.data_size)
  options |= dict(overrides=overrides, hlo=flags.hlo)
  named.append(("now" if named else flags.config, compile_and_report(flags.config, flags.topology, **options)))
  if flags.compare:
    named.append((flags.compare, compile_and_report(flags.compare, flags.topology, **options)))
  names, found = zip(*named)
  if flags.json:
    print(json.dumps(found[0] if len(found) == 1 else found, indent=1))
  elif len(found) == 2:
    print(compare.table(*found, names=names))
  else:
    print(*(show(found[0]) for show in (report.sharding_table, report.temporaries_table, report.table)), sep="\n\n")
  return 0


def compile_and_report(
  config: str,
  topology: str,
  *,
  overrides: Sequence[tuple[str, str]] = (),
  step: str = "train",
  project: str | None = None,
  example: str | None = None,
  data_size: int = _DATA_SIZE,
  hlo: str | None = None,
) -> report.Report:
  """Returns the report of one config on one topology.

  Args:
    config: the config's file.
    topology: the name of the devices.
    overrides: entries of the config to change.
    step, project, example, data_size, hlo: see the flags.

  Raises:
    UserError: a mistake in the config or the flags, or a step that does not fit the memory of its devices.
  """
  _, task, recipe = trained_model.recipe_of(config, overrides, project)
  devices = chips.topology(topology)
  made = program.make_step(task, recipe, devices, step, example=example, data_size=data_size)
  arguments = report.describe(made, devices)["arguments"]

  def refusal(temporaries: float, hbm: float) -> str:
    return fit.refusal(made, recipe, devices, arguments, temporaries, hbm)

  try:
    compiled = program.compile_step(made)
  except program.OutOfMemory as error:
    raise UserError(refusal(error.needed or 0.0, error.there or devices.hbm or 0.0)) from None
  if hlo:
    files.from_here(hlo).write_text(compiled.text)
  found = report.measure(compiled, devices)
  if devices.hbm and found["memory"]["peak"] > devices.hbm:
    raise UserError(refusal(found["memory"]["temporaries"], devices.hbm))
  return {"config": config, "overrides": masked_tree(dict(overrides)), "step": step, **found}


def settle_jax(topology: str) -> None:
  """Has a TPU's compiler work beside the CPU: it looks for no TPU, and asks no machine for one."""
  os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"})
  for name, value in {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
    os.environ.setdefault(name, value)  # Any will do: without, the compiler complains that it cannot find them out.
  if not topology.startswith("gpu"):
    jax.config.update("jax_platforms", "cpu")


if __name__ == "__main__":
  command.run(main)
