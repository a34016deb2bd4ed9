"""The picture and the table of what was measured."""

import xml.etree.ElementTree as ET

from projects.flexivit import plot

CURVES = {"one": dict.fromkeys(plot.PATCHES, 0.975), "other": {p: 0.9 / p for p in plot.PATCHES}}


def test_the_picture_has_every_curve_at_every_size_by_its_accuracy():
  root = ET.fromstring(plot.svg(CURVES))
  curves = [shape for shape in root if shape.tag.endswith("polyline")]
  points = [[tuple(map(float, point.split(","))) for point in curve.get("points").split()] for curve in curves]
  assert [len(each) for each in points] == [len(plot.PATCHES)] * 2
  assert len({y for _, y in points[0]}) == 1
  # Down the page as accuracy falls, to the right as patches grow.
  assert [y for _, y in points[1]] == sorted(y for _, y in points[1])
  assert [x for x, _ in points[1]] == sorted(x for x, _ in points[1])
  words = {text.text for text in root if text.tag.endswith("text")}
  assert {"one", "other", "3 px", "12 px", "100 %"} <= words


def test_the_table_is_markdown_in_percent():
  head, rule, first, _ = plot.table(CURVES).splitlines()
  assert head == "| test accuracy at patches of | 3 px | 4 px | 6 px | 8 px | 12 px |"
  assert rule.count("|") == head.count("|") == first.count("|")
  assert first == "| one | 97.5 % | 97.5 % | 97.5 % | 97.5 % | 97.5 % |"
