"""The table of chips against what their documentation states of whole pods; no compiler is needed."""

import math

import pytest

from tools.aot import chips

# Cloud TPU documentation, "System architecture", of each version: chips of a pod, FLOP/s of bfloat16 and bytes/s of an
# all-reduce of a pod, where it states them. TPU7x: 42.5 EFLOP/s of float8, which is twice bfloat16's.
PODS = {
  "v3": (1_024, 126e15, 340e12),
  "v4": (4_096, 1.1e18, None),
  "v5e": (256, 50.63e15, 51.2e12),
  "v6e": (256, 234.9e15, 102.4e12),
  "tpu7x": (9_216, 42.5e18 / 2, None),
}


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_of_chips_has_what_is_stated_of_it(kind):
  count, flops, all_reduce = PODS[kind]
  assert count * chips.CHIPS[kind].flops == pytest.approx(flops, rel=0.03)
  if all_reduce:
    assert count * chips.CHIPS[kind].ici_bandwidth == pytest.approx(all_reduce, rel=0.03)


@pytest.mark.parametrize(
  "kind, gib", [("v2", 8), ("v3", 16), ("v4", 32), ("v5e", 16), ("v5p", 95), ("v6e", 32), ("tpu7x", 96)]
)
def test_the_memory_of_a_device_is_its_share_of_the_chips(kind, gib):
  """Of a v4 a device has all of it, of a v3 half."""
  chip = chips.CHIPS[kind]
  assert chips.Topology(f"{kind}:2x2", [], chip, (2, 2)).hbm == gib * 2**30


def test_every_topology_that_is_offered_has_the_dimensions_of_its_chips_torus():
  for kind, chip in chips.CHIPS.items():
    for shape in chip.shapes:
      assert len(shape.split("x")) == chip.axes
      assert f"{kind}:" in chips.known()
    sizes = [math.prod(map(int, shape.split("x"))) for shape in chip.shapes]
    assert sizes == sorted(set(sizes))
