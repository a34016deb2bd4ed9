"""docs/from_big_vision.md is what the rules say now, and what it says of names is so."""

import pytest

from core import data_files
from core.evaluators import registry as evaluators
from core.pp import builder, registry  # noqa: F401 (the builder imports the ops)
from core.recipe.distances import DISTANCES
from core.recipe.evaluators import EVALUATORS
from core.recipe.models.registry import MODELS
from core.recipe.transformations import TRANSFORMATIONS
from tools.port_config import docs, rules

PAGE = data_files.find("docs/from_big_vision.md").read_text("utf-8")


def test_the_page_is_what_the_rules_say():
  assert docs.page() == PAGE, "run: ./bazelw run //tools/port_config:docs"


@pytest.mark.parametrize("table, known", [
  (rules.EVALUATORS, EVALUATORS),
  (rules.OPS, registry.OPS),
  (rules.MODELS, MODELS),
  (rules.DISTANCES, DISTANCES),
  (rules.TRANSFORMATIONS[:-1], TRANSFORMATIONS),
])  # fmt: skip
def test_what_a_table_says_is_here_is_here(table, known):
  assert {rule.place for rule in table if rule.place} <= set(known)


def test_every_evaluator_that_a_rule_names_has_a_module():
  assert {EVALUATORS[rule.place] for rule in rules.EVALUATORS if rule.place} <= set(evaluators.MODULES)


def test_every_cell_is_one_cell():
  for line in PAGE.splitlines():
    if line.startswith("| "):
      assert line.replace("\\|", "").count("|") in (3, 5), line
