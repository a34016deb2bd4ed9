"""The table and the curve show what is pinned, and say of what is not."""

import xml.etree.ElementTree as ET

from tools.aot import flagships, summary

FIGURES = {"arguments": 2**30, "temporaries": 2**30, "roofline mfu": 0.5, "roofline seconds": 1.0}
WEAK = {**FIGURES, "roofline seconds if nothing overlaps": 2.0}


def test_a_row_a_flagship_and_a_column_a_number_of_chips():
  refused = {"refused": "config does not fit"}
  head, _, *rows = summary.table(
    {"vit g/14 on 1": FIGURES, "siglip B/16 on 1": FIGURES, "vit g/14 on 8": refused}
  ).splitlines()
  assert head == "| chips | 1 | 8 | 256 | 2,048 |"
  assert rows[0] == "| vit g/14 | v5p: 2.00 GiB, 50%, in 512 parts | does not fit | not compiled | not compiled |"
  assert "| v5p: 2.00 GiB, 50%, batch 4,096 |" in next(row for row in rows if row.startswith("| siglip"))
  assert len(rows) == len(flagships.FLAGSHIPS)


def test_without_overlap_the_share_of_the_peak_is_that_of_the_longer_step():
  pinned = {f"vit g/14, 16 a chip, on {chips}": WEAK for chips in (1, 2_048)}
  root = ET.fromstring(summary.curve(pinned))
  heights = [shape.get("points").split()[0].split(",")[1] for shape in root if shape.tag.endswith("polyline")]
  marks = {text.text: float(text.get("y")) - 4 for text in root if text.tag.endswith("text")}
  half = (marks["40 %"] + marks["60 %"]) / 2
  quarter = (marks["20 %"] * 3 + marks["40 %"]) / 4
  assert [float(height) for height in heights] == [half, quarter]
  assert "2,048" in marks
