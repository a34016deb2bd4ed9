"""Regexes of which one has no effect."""

import pytest

from core.errors import UserError
from core.recipe.rules import first_match, refuse_idle

NAMES = ["embedding/kernel", "head/bias", "head/kernel"]


@pytest.mark.parametrize(
  "patterns", [[], [".*"], ["head/.*", "embedding/.*", ".*"], ["head/bias", "head/.*"], [".*/kernel", ".*/bias"]]
)
def test_patterns_that_each_decide_for_a_name_are_taken(patterns):
  refuse_idle(patterns, NAMES, "config.x")


@pytest.mark.parametrize(
  "patterns, line",
  [
    (["hed/.*", ".*"], "config.x: 'hed/.*' matches no parameter by its whole name (nearest: head/"),
    (["head"], "config.x: 'head' matches no parameter by its whole name"),
    ([".*", "head/.*"], "config.x: 'head/.*' comes after '.*', which takes all it would match; put it first"),
    (["head/.*", "head/.*"], "config.x: 'head/.*' comes after 'head/.*', which takes"),
    (["", ".*"], "config.x: '' matches no parameter"),
    (["x" * 1_000], "config.x: 'xxx"),
    (["x\n" * 100], "config.x: 'x\\nx"),
  ],
)
def test_a_pattern_without_effect_is_refused_in_one_line(patterns, line):
  with pytest.raises(UserError) as error:
    refuse_idle(patterns, NAMES, "config.x")
  assert str(error.value).startswith(line)
  assert len(str(error.value)) <= 300
  assert "\n" not in str(error.value)


def test_the_first_that_matches_the_whole_name_decides():
  assert [first_match(name, ["head", "head/.*", ".*kernel"]) for name in NAMES] == [2, 1, 1]
  assert first_match("cls", ["c", "head/.*"]) is None
