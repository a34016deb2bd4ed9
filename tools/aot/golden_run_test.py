"""The figures of the flagship configs are those that were pinned: minutes of compiling, so by hand alone."""

import json

import pytest

from tools.aot import golden

PINNED = json.loads(golden.path().read_text())


@pytest.mark.parametrize("name", sorted(PINNED.keys() - set(golden.LIGHT)))
def test_the_figures_are_those_that_were_pinned(name):
  moved = golden.differences(name, PINNED[name], golden.record(name))
  assert not moved, f"meant? then: ./bazelw run //tools/aot:repin -- {name}"
