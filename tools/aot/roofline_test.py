"""Estimates of time against sums by hand, on chips with round numbers."""

import dataclasses

import pytest

from tools.aot import roofline
from tools.aot.chips import CHIPS, Chip, Topology
from tools.aot.hlo_cost import Collective, Cost

# Four links of 1 byte/s each way; a dimension of 4 is a ring.
CHIP = Chip(flops=100.0, hbm=1e3, hbm_bandwidth=10.0, ici_bandwidth=4.0, devices=1, axes=2, wraps_at=4, shapes=("4x4",))
RING = Topology("x:4x4", [None] * 16, CHIP, (4, 4))
LINE = Topology("x:2x2", [None] * 4, CHIP, (2, 2))


def transfer(kind, group, bytes_=160, times=1):
  return Collective(kind, bytes_, group, times, False, "f32[40]", "")


@pytest.mark.parametrize(
  "kind, group, topology, expected",
  [
    ("all-gather", 16, RING, 150 / 4),  # 15 of 16 parts arrive, over all four links.
    ("reduce-scatter", 16, RING, 150 / 4),
    ("all-reduce", 16, RING, 2 * 150 / 4),
    ("all-gather", 4, RING, 120 / 2),  # Along one dimension: two of the links.
    ("all-gather", 4, LINE, 120 / 2),  # Two dimensions of two chips, one link each.
    ("collective-permute", 16, RING, 160 / 1),
    ("all-to-all", 16, RING, 150 * 2 / 4),  # One hop a dimension on average.
  ],
)
def test_a_transfer_takes_its_bytes_over_the_links_of_the_dimensions_it_spans(kind, group, topology, expected):
  assert roofline.transfer_seconds(transfer(kind, group), topology) == pytest.approx(expected)


def test_the_slowest_term_is_named_and_sets_the_time():
  cost = Cost(flops=300.0, bytes=20.0, collectives=(transfer("all-gather", 16, 16, times=2),), unknown_loops=())
  found = roofline.estimate(cost, model_flops=16 * 150.0, topology=RING)
  assert (found.compute, found.memory, found.interconnect) == pytest.approx((3.0, 2.0, 2 * 15 / 4))
  assert (found.limit, found.seconds, found.mfu) == ("interconnect", 7.5, pytest.approx(150 / 750))
  assert found.seconds_if_nothing_overlaps == 12.5


def test_a_core_that_is_a_device_has_half_of_its_chip():
  cores = dataclasses.replace(RING, devices=[None] * 32, chip=dataclasses.replace(CHIP, devices=2))
  cost = Cost(flops=300.0, bytes=0.0, collectives=(), unknown_loops=())
  assert roofline.estimate(cost, 0.0, cores).compute == 6.0
  assert cores.hbm == 500.0


def test_devices_of_which_nothing_is_known_have_no_estimate():
  assert roofline.estimate(Cost(1.0, 1.0, (), ()), 1.0, Topology("cpu:2", [None] * 2, None, (2,))) is None


@pytest.mark.parametrize("kind", CHIPS)
def test_the_table_of_chips_is_whole(kind):
  chip = CHIPS[kind]
  assert all(len(shape.split("x")) == chip.axes for shape in chip.shapes)
  # A chip computes hundreds of operations in the time of reading a byte, and its links are slower than its memory.
  assert 60 < chip.flops / chip.hbm_bandwidth < 600
  assert chip.ici_bandwidth < chip.hbm_bandwidth
