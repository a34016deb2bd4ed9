"""The generator in NumPy; that TensorFlow gives the same bits is shown in ops_test.py."""

import numpy as np
import pytest
from scipy import stats

from core.pp.rng import Rng, philox

SEEDS = np.arange(100_000)  # Seeds that differ in few bits are the hard case.


@pytest.mark.parametrize(
  "seed, low, high, words",
  [  # The known answers published with Random123, the reference implementation of Salmon et al. 2011.
    (0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (-1, 2**64 - 1, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
      int(np.uint64(0x299F31D0A4093822).view(np.int64)),
      0x85A308D3243F6A88,
      0x0370734413198A2E,
      (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
  ],
)
def test_words_are_the_published_ones(seed, low, high, words):
  assert tuple(philox(np.int64(seed), low, high, 4)) == words


def test_uniform_is_uniform_over_consecutive_seeds_streams_and_draws():
  rng = Rng(SEEDS)
  samples = [rng.uniform(), rng.uniform(), rng.fold_in(0).uniform(), rng.fold_in(1).uniform()]
  samples.append(Rng(np.int64(3)).uniform(count=100_000))
  for sample in samples:
    assert sample.dtype == np.float32
    assert sample.min() >= 0
    assert sample.max() < 1
    assert stats.kstest(sample, "uniform").pvalue > 1e-4
  for i, a in enumerate(samples):
    for b in samples[:i]:
      assert abs(np.corrcoef(a, b)[0, 1]) < 0.016  # Five standard deviations.


def test_integers_are_uniform():
  sample = Rng(SEEDS).fold_in(7).integer(-3, 14)
  assert sample.dtype == np.int32
  values, counts = np.unique(sample, return_counts=True)
  assert list(values) == list(range(-3, 14))
  assert stats.chisquare(counts).pvalue > 1e-4


def test_uniform_covers_the_range_asked_for():
  sample = Rng(SEEDS).uniform(-2.0, 6.0)
  assert stats.kstest(sample, stats.uniform(-2, 8).cdf).pvalue > 1e-4


def test_a_batch_draws_what_each_seed_draws_alone():
  together, alone = Rng(SEEDS[:5]).fold_in(2), [Rng(seed).fold_in(2) for seed in SEEDS[:5]]
  for draw in (lambda r: r.uniform(), lambda r: r.integer(0, 99), lambda r: r.key(), lambda r: r.uniform(count=7)):
    np.testing.assert_array_equal(draw(together), [draw(rng) for rng in alone])


def test_keys_children_and_draws_never_collide():
  rng = Rng(SEEDS[:100])
  streams = [
    rng,
    *(rng.fold_in(i) for i in range(10)),
    *(rng.fold_in(i).fold_in(j) for i in range(3) for j in range(10)),
  ]
  keys = np.concatenate([stream.key() for stream in streams for _ in range(5)])
  assert len(np.unique(keys, axis=0)) == len(keys)


def test_a_draw_does_not_depend_on_how_much_the_one_before_took():
  a, b = Rng(SEEDS[:9]), Rng(SEEDS[:9])
  a.uniform(count=1000)
  b.key()
  np.testing.assert_array_equal(a.uniform(), b.uniform())
