"""How an average is rounded to bfloat16: at random with the right expectation, or with the 8 bits that are missing."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from core.optim import ema


def assert_same_bits(got, want):

  def bits(x):
    return np.atleast_1d(np.asarray(x)).view(np.uint8)

  jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), got, want)


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average():
  x = np.float32(np.random.default_rng(0).standard_normal(500) * 10.0 ** np.arange(-20, 5).repeat(20))
  keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(jax.random.key(0), i)))(jnp.arange(4_000))

  @jax.jit
  def rounded(x):

    def once(key):
      return ema._as_bfloat16(ema._rounded_up_at_random(x, ema._random_bits(key, 3, x.shape) >> 16) >> 16)

    return jax.vmap(once)(keys)

  values = np.asarray(rounded(x), np.float64)
  toward_zero = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
  away = ((x.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
  assert np.all((values == toward_zero) | (values == away))
  ulp = np.abs(np.float64(away) - toward_zero)
  # 4,000 draws: a deviation of at most 0.008 of the distance of the neighbours.
  assert np.abs((values.mean(0) - x) / ulp).max() < 4.5 * 0.008


def test_numbers_of_bfloat16_infinities_and_nan_are_not_rounded():
  kept = np.float32([0.0, -0.0, 1.5, -3.0, np.inf, -np.inf, np.float32(ml_dtypes.finfo(ml_dtypes.bfloat16).max)])
  all_bits = jnp.full(kept.shape, 0xFFFF, jnp.uint32)
  assert_same_bits(np.float32(ema._as_bfloat16(ema._rounded_up_at_random(kept, all_bits) >> 16)), kept)
  nan = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
  assert np.all(np.isnan(np.float32(ema._as_bfloat16(ema._rounded_up_at_random(nan, all_bits[:2]) >> 16))))


def test_24_bits_come_back_from_the_nearest_bfloat16_and_8_bits():
  rng = np.random.default_rng(0)
  upper = rng.integers(0, 0x7F8000, 100_000, dtype=np.uint32) | (rng.integers(0, 2, 100_000, dtype=np.uint32) << 23)
  x = (upper << 8).view(np.float32)
  average, remainder = ema._split(upper)
  assert (average.dtype, remainder.dtype) == (jnp.bfloat16, jnp.int8)
  assert_same_bits(ema._joined(average, remainder), x)
  # Ties go away from zero here, to even in the cast.
  distance = np.abs(np.float64(average) - x)
  finite = np.isfinite(np.float32(average))
  np.testing.assert_array_equal(distance[finite], np.abs(np.float64(x.astype(ml_dtypes.bfloat16)) - x)[finite])


def test_random_bits_are_uniform_and_independent_of_neighbours_leaves_and_steps():

  def key(step):
    return jax.random.key_data(jax.random.fold_in(jax.random.key(0), step))

  draw = jax.jit(ema._random_bits, static_argnums=(1, 2))
  drawn = {(step, leaf): np.asarray(draw(key(step), leaf, (256, 1024))) for step in (0, 1) for leaf in (0, 1)}
  bits = drawn[0, 0]
  for bit in range(32):
    ones = (bits >> bit) & 1
    assert abs(ones.mean() - 0.5) < 4 * 0.5 / np.sqrt(bits.size)
  counts = np.bincount((bits >> 24).ravel(), minlength=256)
  expected = bits.size / 256
  assert np.sum((counts - expected) ** 2 / expected) < 255 + 5 * np.sqrt(2 * 255)  # Chi-squared.

  def correlation(a, b):
    return np.corrcoef(a.ravel() / 2**32, b.ravel() / 2**32)[0, 1]

  others = [drawn[1, 0], drawn[0, 1], np.roll(bits, 1, 0), np.roll(bits, 1, 1), np.roll(bits, 7, 1)]
  for other in others:
    assert abs(correlation(bits, other)) < 4.5 / np.sqrt(bits.size)
