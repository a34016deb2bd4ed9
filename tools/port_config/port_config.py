"""Brings a config of big_vision: writes it as one of ours, and tells what became of each key.

./bazelw run //tools:port_config -- --config=WORKDIR/config.json --output=mine.py
./bazelw run //tools:port_config -- --config=FILE.py:ARGS --big_vision=CHECKOUT --output=mine.py

The result is read again, and ends in a dry run of the project's trainer: all is checked that a run would refuse. The
rules are tools/port_config/rules.py; docs/from_big_vision.md shows them.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import command, files
from core.errors import UserError
from core.recipe import load, words
from core.training import cli, dry_run
from tools import trained_model
from tools.port_config import port, read, write
from tools.port_config.rule import OTHER, REFUSED
from tools.port_config.without_defaults import without_defaults

COMMAND = command.Command("port_config --config=config.json --output=FILE.py [options]", about=__doc__)
COMMAND.text(
  "config", "the config of big_vision: config.json of a workdir, or FILE.py:ARGS", required=True, shown="FILE"
)
COMMAND.text("big_vision", "the checkout that a FILE.py imports from", shown="CHECKOUT")
COMMAND.text("output", "the file to write", required=True, shown="FILE.py")
COMMAND.switch("no_dry_run", "end when the result is read; a dry run needs the data and the weights that it names")
cli.define_jax(COMMAND)

_IDLE_RULE = re.compile(
  r"config\.(schedule|lr_mults|wd_mults|sharding_strategy): ('.*?'|\".*?\") (matches no parameter|comes after)"
)


def main(argv: Sequence[str]) -> int:
  """Ports a config; returns the exit status."""
  flags, _ = COMMAND.parse(argv)
  output = Path(files.from_here(flags.output))
  if output.suffix != ".py":
    raise UserError(f"--output must end in .py, got {flags.output!r}")
  made = port.port(read.config(flags.config, flags.big_vision))
  task = trained_model.trainer_of(made.project).TASK
  config, fault = reduced(task, made.out)
  save(output, made, config, flags.config)
  if fault is None and not flags.no_dry_run:
    cli.start_jax(flags, None)
    fault = _dry_run(made, task, config, output, flags.config)
  print(write.table(made.said))
  print(f"written to {output}, a config of the project {made.project}")
  if fault:
    raise UserError(f"{output.name}: {fault}")
  if refused := [row.there for row in made.said if row.verdict == REFUSED]:
    raise UserError(f"{len(refused)} entries could not be ported and are left out: {', '.join(refused)}")
  return 0


def reduced(task: Any, config: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
  """Returns a config without what is the default anyway, and None; or it as it is, and why it is none."""
  try:
    kind, _ = cli.read_recipe(task, config)
    return without_defaults(kind.Recipe, config), None
  except UserError as error:
    return config, str(error)


def save(output: Path, made: port.Port, config: dict[str, Any], source: str) -> None:
  """Writes the file."""
  text = write.python(
    made,
    config,
    title=f"Ported from big_vision: {source.rpartition('/')[2]}.",
    command=f"./bazelw run //projects/{made.project}:train -- --config={output.name}",
  )
  with files.replacing(output) as file:
    file.write(text.encode())


def _dry_run(made: port.Port, task: Any, config: dict[str, Any], output: Path, source: str) -> str | None:
  """Checks the file as a run would, without what matches no parameter; returns what is wrong with it, or None."""
  while True:
    kind, recipe = cli.read_recipe(task, load.read(str(output)))
    try:
      print(dry_run.describe(kind(recipe), recipe, title=f"{made.project} {output.stem}"))
      return None
    except UserError as error:
      if (found := _IDLE_RULE.match(str(error))) is None:
        return str(error)
      key, shown = found[1], found[2]
      kept = [rule for rule in config[key] if words.shown(rule[0]) != shown]
      if len(kept) == len(config[key]):
        return str(error)
      config[key] = kept
      made.tell(OTHER, f"{key}: {shown}", key, "it decides for no parameter, which is allowed there; left out")
      save(output, made, config, source)


if __name__ == "__main__":
  command.run(main)
