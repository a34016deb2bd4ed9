"""Writes docs/config.md, the page of every key of a config, from the recipes: `./bazelw run //tools:config_docs`."""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

from collections.abc import Sequence

from core import command
from core.recipe import document, tasks
from core.recipe.recipe import Recipe
from projects.clippo import recipe as clippo
from projects.flexivit import recipe as flexivit
from tools import docs_page

# The recipes by the titles of their sections; each extends one that stands before it.
RECIPES = {
  "Every training": Recipe,
  "Classification": tasks.Classification,
  "Contrastive training": tasks.Contrastive,
  "Distillation": tasks.Distillation,
  "Classification at several sequence lengths (flexivit)": flexivit.FlexibleClassification,
  "Distillation at several sequence lengths (flexivit)": flexivit.FlexibleDistillation,
  "Contrastive training with a classifier (clippo)": clippo.CoTraining,
}

_COMMAND = command.Command("config_docs", about=__doc__)


def page() -> str:
  """Returns what docs/config.md is to hold."""
  return document.markdown(RECIPES)


def main(argv: Sequence[str]) -> int:
  """Writes the page; returns the exit status."""
  _COMMAND.parse(argv)
  docs_page.write("config.md", page())
  return 0


if __name__ == "__main__":
  command.run(main)
