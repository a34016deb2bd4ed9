"""docs/config.md is what the recipes say now, and its links lead to headings."""

import dataclasses
import re

import pytest

from core import data_files
from core.recipe import annotations, document
from tools import config_docs

PAGE = data_files.find("docs/config.md").read_text("utf-8")


def test_the_page_is_what_the_recipes_say():
  assert config_docs.page() == PAGE, "run: ./bazelw run //tools:config_docs"


def test_every_link_leads_to_one_heading():
  """By GitHub's rule: lower case, nothing but letters, digits, `_`, `-` and spaces, which become `-`."""
  titles = [line.lstrip("# ").lower() for line in PAGE.splitlines() if line.startswith("#")]
  headings = [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles]
  assert len(headings) == len(set(headings))
  links = re.findall(r"\]\(#([^)]*)\)", PAGE)
  assert links
  assert set(links) <= set(headings)


@pytest.mark.parametrize("title", config_docs.RECIPES)
def test_every_key_of_a_recipe_stands_in_its_section_or_in_one_that_it_extends(title):
  kind = config_docs.RECIPES[title]
  told = {
    key.name
    for section in document.sections(config_docs.RECIPES)
    if section.title in config_docs.RECIPES and issubclass(kind, config_docs.RECIPES[section.title])
    for key in section.keys
  }
  for field in dataclasses.fields(kind):
    if annotations.is_key(field):
      assert any(name == field.name or name.startswith(f"{field.name}_{{") for name in told), field.name


def test_every_key_has_a_meaning_and_every_row_four_cells():
  for section in document.sections(config_docs.RECIPES):
    for key in section.keys:
      assert key.meaning, f"{section.title}: {key.name}"
  rows = [line for line in PAGE.splitlines() if line.startswith("|")]
  assert rows
  assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
