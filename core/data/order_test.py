"""The order of the input, against brute force."""

import collections

import numpy as np
import pytest

from core.data import order
from core.errors import UserError

ODD = [(8, 8, 1), (8, 4, 37), (12, 3, 100), (64, 64, 101), (6, 6, 5), (128, 64, 1000)]


def test_hash_is_splitmix64():
  # The generator's published first output from state 0.
  assert int(order.hash64(0)[0]) == 0xE220A8397B1DCDAF


def test_hash_takes_any_integer_and_broadcasts():
  words = np.arange(1000)
  assert len(set(order.hash64(-1, 2**63 + 5, words).tolist())) == 1000
  assert order.hash64(3, words)[7] == order.hash64(3, 7)[0]


def test_bits_of_seeds_are_even():
  bits = np.unpackbits(order.example_seeds(0, np.arange(10_000)).view(np.uint8))
  assert abs(bits.mean() - 0.5) < 0.003


@pytest.mark.parametrize("batch, lanes, n", ODD)
def test_lane_arithmetic_equals_counting(batch, lanes, n):
  deal = order.Lanes(batch, lanes)
  lane_of = np.arange(3 * batch + 7) % batch // deal.width
  for x in range(len(lane_of)):
    for lane in range(lanes):
      assert deal.before(lane, x) == (lane_of[:x] < lane).sum()
      assert deal.index(lane, x) == (lane_of[:x] == lane).sum()
    assert deal.position(lane_of[x], deal.index(lane_of[x], x)) == x


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8, 96])
def test_lanes_divide_the_batch_and_are_divided_by_processes(processes):
  lanes = order.lanes_for(192, processes)
  assert lanes.batch_size % lanes.count == 0
  assert lanes.count % processes == 0


@pytest.mark.parametrize("n", [1, 5, 37, 64, 1000])
def test_memory_order_is_a_new_permutation_every_epoch(n):
  epochs = order.rows(n, 3, 0, np.arange(4 * n)).reshape(4, n)
  assert (np.sort(epochs, axis=1) == np.arange(n)).all()
  assert n < 5 or not (epochs[0] == epochs[1]).all()
  assert n < 5 or not (order.rows(n, 4, 0, np.arange(n)) == epochs[0]).all()


def test_memory_order_is_pure():
  whole = order.rows(37, 3, 0, np.arange(500))
  some = np.array([499, 3, 36, 37, 40])
  assert (order.rows(37, 3, 0, some) == whole[some]).all()


def test_memory_order_is_uniform():
  first = np.array([order.rows(4, seed, 0, np.arange(4)) for seed in range(2400)])
  counts = collections.Counter(map(tuple, first))
  assert len(counts) == 24
  assert max(abs(c - 100) for c in counts.values()) < 50  # 5 standard deviations.


def plans(batch, processes, mixture):
  mixture = mixture and order.Mixture.of(5, mixture)
  return [order.ReadPlan(order.lanes_for(batch, processes), mixture, i, processes) for i in range(processes)]


@pytest.mark.parametrize("mixture", [None, (0.7, 0.3), (1, 2, 5)])
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("step", [0, 1, 1234567])
def test_processes_share_a_batch_slot_by_slot(mixture, processes, step):
  (whole,) = plans(48, 1, mixture)
  parts = [plan.slots(step) for plan in plans(48, processes, mixture)]
  for field in ("position", "component", "index", "lane", "lane_index"):
    together = np.concatenate([getattr(part, field) for part in parts])
    np.testing.assert_array_equal(together, getattr(whole.slots(step), field))
  np.testing.assert_array_equal(whole.slots(step).position, step * 48 + np.arange(48))


def test_mixture_keeps_its_weights_and_mixes_within_batches():
  (plan,) = plans(100, 1, (0.7, 0.3))
  steps = np.array([np.bincount(plan.slots(t).component, minlength=2) for t in range(500)])
  assert abs(steps[:, 0].mean() - 70) < 0.5
  assert steps[:, 0].min() > 40
  assert 1 < steps[:, 0].std() < 4.6  # No fixed pattern, and steadier than independent draws.


def test_mixture_gives_each_component_every_position_once():
  plan = order.ReadPlan(order.Lanes(24, 6), order.Mixture.of(5, (1, 2, 5)))
  slots = [plan.slots(t) for t in range(1000 // plan.lanes.width * 8)]
  component, index = (np.concatenate([getattr(s, f) for s in slots]) for f in ("component", "index"))
  for c, part in enumerate(plan.mixture.parts):
    # Each lane has had whole blocks: exactly the component's first positions.
    np.testing.assert_array_equal(np.sort(index[component == c]), np.arange(1000 * plan.lanes.count * part))


@pytest.mark.parametrize("first", [0, 9_990, 123_456])
def test_mixture_counts_equal_counting(first):
  mixture = order.Mixture.of(1, (3, 1))
  component, index = mixture.locate(7, first, 40)
  for j in range(40):
    assert index[j] == mixture.count(7, component[j], first + j)


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.7, 0.3), (1281167, 13_000_000), (1e-4, 0.9999)])
def test_weights_are_kept_to_a_part_in_ten_thousand(weights):
  parts = np.array(order.Mixture.of(0, weights).parts)
  assert np.abs(parts / parts.sum() - np.array(weights) / sum(weights)).max() <= 1e-4


def test_mixture_of_simple_weights_is_exact_every_few_examples():
  assert order.Mixture.of(0, (0.7, 0.3)).parts == (7, 3)


def test_a_weight_too_small_to_keep_is_refused():
  with pytest.raises(UserError, match="a weight is at least"):
    order.Mixture.of(0, (1, 1e-6))


STREAMS = [(8, 1, (37,), 5), (8, 2, (10, 0, 13, 1), 3), (12, 4, (50, 51), 100), (6, 1, (3,), 1), (64, 1, (200, 31), 7)]


@pytest.mark.parametrize("batch, processes, takes, window", STREAMS)
def test_stream_gives_every_record_once_an_epoch(batch, processes, takes, window):
  lanes = order.lanes_for(batch, processes)
  stream = order.StreamOrder(9, 0, lanes, takes, window)
  plan = order.ReadPlan(lanes, None)
  n, seen = sum(takes), []
  for t in range(-(-3 * n // batch)):
    slots = plan.slots(t)
    seen += [stream.record(int(lane), int(index)) for lane, index in zip(slots.lane, slots.lane_index)]
  all_records = sorted((piece, number) for piece, take in enumerate(takes) for number in range(take))
  for epoch in range(3):
    assert sorted(seen[epoch * n : (epoch + 1) * n]) == all_records
  assert n < 10 or seen[:n] != seen[n : 2 * n]


def test_stream_is_shuffled_within_its_windows_only():
  stream = order.StreamOrder(9, 0, order.Lanes(4, 1), (1000,), 50)
  records = np.array([stream.record(0, index)[1] for index in range(1000)])
  windows = records.reshape(20, 50)
  for window in windows:  # 50 neighbours, but for the one that wraps around the file's end.
    assert np.ptp(window) == 49 or np.ptp((window + 500) % 1000) == 49
    assert not (np.diff(window) == 1).all()


def test_stream_order_is_the_same_for_any_number_of_processes():
  orders = [order.StreamOrder(9, 0, order.lanes_for(64, p), (500, 77), 4) for p in (1, 2, 4, 64)]
  assert len({stream.record(13, 200) for stream in orders}) == 1
