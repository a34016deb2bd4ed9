"""Writes docs/from_big_vision.md from the rules of tools:port_config: `./bazelw run //tools/port_config:docs`."""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

from collections.abc import Sequence

from core import command
from tools import docs_page
from tools.port_config import rules
from tools.port_config.rule import IDLE, REFUSED, Rule

_COMMAND = command.Command("docs", about=__doc__)

_BEGINNING = """\
# From big_vision

    ./bazelw run //tools:port_config -- --config=WORKDIR/config.json --output=mine.py
    ./bazelw run //tools:port_config -- --config=FILE.py:ARGS --big_vision=CHECKOUT --output=mine.py

A config of big_vision becomes one of ours: a Python file that reads like those in `projects/*/configs`, with the values
that are not the default anyway and a comment where something was translated. The program tells what became of each key:

| | |
|---|---|
| kept | the same key with the same meaning |
| renamed | the same meaning under another name |
| without effect here | nothing depends on it; left out |
| other meaning here | what was written keeps the numbers, or it is told why they differ |
| refused | it cannot be carried over; exit status 2, the file is written without it |

It ends by reading the file again and by a dry run of the project's trainer, which needs the data and the weights that
the config names; `--no_dry_run` ends before. A config of a project that is not here is refused by the project's name.
Configs of older heads, with `dataset`, `train_split`, `num_epochs` at the top, are read as well.

Of the configs that big_vision holds, those of ViT, BiT, MLP-Mixer, transfer, load_and_eval, CLIPPO, distillation,
FlexiViT, GSAM and SigLiT are ported by a test, and each trains three small steps, evaluates and resumes
(`tools/port_config/ported_runs_test.py`).

This page is made of the rules of that program, `tools/port_config/rules.py`: `./bazelw run //tools/port_config:docs`
writes it anew. "Same numbers" is yes where what is computed is the same for the same input; a seed draws other random
numbers here, and sums may be rounded in another order.
"""

_CHOICES = """\
## What differs by choice

- Random draws: parameters, order of the data, augmentation, dropout and mixup follow from seed and step, so that a run
  that was stopped goes on with the same numbers. They are other draws than those of big_vision.
- Mixup mixes within the whole batch; there within each device's part of it.
- What is random in the preprocessing of an evaluation is drawn by the example, and so the same every time.
- The distances to several teachers are averaged; there they are added.
- A checkpoint is always written, every 1,000 steps where nothing else is said, and a run that is started again with the
  same workdir goes on from it.
- A rule (`schedule`, `lr_mults`, `wd_mults`, `sharding_strategy`) that matches no parameter is refused; there it is
  passed over. The dry run of `port_config` leaves such rules out and says so.
- Names of metrics: the few-shot evaluator gives the mean over its seeds, contrastive `ncorrect_minibatch` is `prec@1`.
  What begins the names, `prefix`, is kept.
"""

# The tables of the page.
_TABLES = (
  ("Keys of a config", rules.KEYS),
  ("Evaluators", rules.EVALUATORS),
  ("Predictions", rules.PREDICTIONS),
  ("Preprocessing ops", rules.OPS),
  ("Models", rules.MODELS),
  ("Options of models", tuple(rules.OPTIONS.values())),
  ("Transformations of gradients", rules.TRANSFORMATIONS),
  ("Distances", rules.DISTANCES),
  ("Sources of data", rules.SOURCES),
  ("Files", rules.FILES),
)
_ABOUT = {
  "Keys of a config": "`NAME` is an evaluation's, `TEACHER` a distilled model's (the student's, too), `PART` a\n"
  "component of a mixture, `UNIT` one of steps, epochs, examples and percent. no `KEY`: what is written where the key\n"
  "is not given.",
  "Preprocessing ops": "In pp strings, with the arguments that they have there.",
  "Options of models": "All that are not in this table have their names and values; [all keys](config.md) lists them.",
}


def page() -> str:
  """Returns what docs/from_big_vision.md is to hold."""
  parts = [_BEGINNING]
  for title, table in _TABLES:
    about = [f"{_ABOUT[title]}\n"] if title in _ABOUT else []
    parts += [f"## {title}\n", *about, _table(table)]
  return "\n".join([*parts, _CHOICES])


def _table(table: Sequence[Rule]) -> str:
  rows = ["| there | here | same numbers | |", "|---|---|---|---|", *map(_row, table)]
  return "\n".join([*rows, ""])


def _row(rule: Rule) -> str:
  there = f"no `{rule.there.removeprefix('no ')}`" if rule.there.startswith("no ") else _code(rule.there)
  here = {IDLE: "*without effect*", REFUSED: "*refused*"}.get(rule.verdict, _code(rule.here or rule.there))
  same = {True: "yes", False: "no", None: ""}[rule.same]
  said = rule.said.replace("|", "\\|")
  return f"| {there} | {here} | {'' if rule.verdict in (IDLE, REFUSED) else same} | {said} |"


def _code(text: str) -> str:
  escaped = text.replace("|", "\\|")
  return f"`{escaped}`"


def main(argv: Sequence[str]) -> int:
  """Writes the page; returns the exit status."""
  _COMMAND.parse(argv)
  docs_page.write("from_big_vision.md", page())
  return 0


if __name__ == "__main__":
  command.run(main)
