"""The table of what was measured."""

from projects.flexivit import plot

CURVES = {"one": dict.fromkeys(plot.PATCHES, 0.975), "other": {p: 0.9 / p for p in plot.PATCHES}}


def test_the_table_is_markdown_in_percent():
  head, rule, first, _ = plot.table(CURVES).splitlines()
  assert head == "| test accuracy at patches of | 3 px | 4 px | 6 px | 8 px | 12 px |"
  assert rule.count("|") == head.count("|") == first.count("|")
  assert first == "| one | 97.5 % | 97.5 % | 97.5 % | 97.5 % | 97.5 % |"
