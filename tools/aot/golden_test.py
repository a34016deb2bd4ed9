"""The figures of small steps are those that were pinned; golden_run_test.py has those that take minutes."""

import json

import pytest

from tools.aot import golden

PINNED = json.loads(golden.path().read_text())


@pytest.mark.parametrize("name", golden.LIGHT)
def test_the_figures_are_those_that_were_pinned(name):
  moved = golden.differences(name, PINNED[name], golden.record(name))
  assert not moved, f"meant? then: ./bazelw run //tools/aot:repin -- {name}"


@pytest.mark.parametrize(
  "found, words",
  [
    ({"temporaries": 104, "limit": "memory"}, []),
    ({"temporaries": 106, "limit": "memory"}, ["x temporaries: 106, pinned 100"]),
    ({"temporaries": 100, "limit": "compute"}, ["x limit: compute, pinned memory"]),
    ({"temporaries": 100, "limit": "memory", "all-gather bytes": 5}, ["x all-gather bytes: 5, pinned None"]),
    ({"refused": "does not fit"}, ["x temporaries: None, pinned 100", "x limit: None, pinned memory"]),
  ],
)
def test_what_moved_is_told_by_name(found, words):
  assert golden.differences("x", {"temporaries": 100, "limit": "memory"}, found) == words
