"""A picture shows each curve at each place, by its value."""

import xml.etree.ElementTree as ET

from core import plots

PLACES = (3, 4, 6, 8, 1_024)


def test_the_picture_has_every_curve_at_every_place_by_its_value():
  curves = {"one": dict.fromkeys(PLACES, 0.975), "other": {p: 0.9 / p for p in PLACES}}
  root = ET.fromstring(plots.shares(curves, places=PLACES, unit=" px", title="size"))
  curves = [shape for shape in root if shape.tag.endswith("polyline")]
  points = [[tuple(map(float, point.split(","))) for point in curve.get("points").split()] for curve in curves]
  assert [len(each) for each in points] == [len(PLACES)] * 2
  assert len({y for _, y in points[0]}) == 1
  # Down the page as values fall, to the right as places grow.
  assert [y for _, y in points[1]] == sorted(y for _, y in points[1])
  assert [x for x, _ in points[1]] == sorted(x for x, _ in points[1])
  words = {text.text for text in root if text.tag.endswith("text")}
  assert {"one", "other", "3 px", "1,024 px", "100 %", "size"} <= words
