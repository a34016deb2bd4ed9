"""A project's first steps are those that were pinned; `bazel test` runs this for each project, as its golden_test."""

import json
import os
from pathlib import Path

import pytest

from tools import golden

PROJECT = os.environ["PROJECT"]


def test_the_first_steps_are_those_that_were_pinned():
  pinned = json.loads(Path("projects", PROJECT, "repro", "golden.json").read_text())
  moved = golden.differences(pinned, golden.record(PROJECT))
  assert not moved, f"meant? then: ./bazelw run //projects/{PROJECT}:repin"


PINNED = {"digits": {"losses": [2.3, 2.0], "results": {"test/prec@1": 0.5, "test/loss": 1.0}}}


@pytest.mark.parametrize(
  "found, words",
  [
    ({"digits": {"losses": [2.3, 2.0], "results": {"test/prec@1": 0.502, "test/loss": 1.0}}}, []),
    ({"digits": {"losses": [2.3005, 2.0], "results": {"test/prec@1": 0.5, "test/loss": 1.0}}}, []),
    (
      {"digits": {"losses": [2.303, 2.0], "results": {"test/prec@1": 0.5, "test/loss": 1.0}}},
      ["digits loss of step 1: 2.303, pinned 2.3"],
    ),
    (
      {"digits": {"losses": [2.3], "results": {"test/prec@1": 0.52, "test/loss": 1.0}}},
      ["digits loss of step 2: None, pinned 2.0", "digits test/prec@1: 0.52, pinned 0.5"],
    ),
    ({**PINNED, "bit_digits": {}}, ["bit_digits: not pinned yet"]),
    ({}, ["digits: gone"]),
  ],
)
def test_what_moved_is_told_by_name(found, words):
  assert golden.differences(PINNED, found) == words


def test_a_surrogate_gap_is_held_by_its_own_size_and_an_eigenvalue_of_trained_parameters_not_at_all():
  results = {"sharpness/surrogate_gap": 0.0142, "test/prec@1": 0.5}
  assert golden.pinnable(results | {"sharpness/top_eigenvalue": 8.2, "sharpness/iterations": 6}) == results
  pinned, near, far = ({"digits": {"losses": [], "results": {"sharpness/surrogate_gap": x}}} for x in (1, 1.01, 1.03))
  assert golden.differences(pinned, near) == []
  assert golden.differences(pinned, far) == ["digits sharpness/surrogate_gap: 1.03, pinned 1"]
