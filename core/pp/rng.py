"""Random draws that are a pure function of an example's seed, with the same bits in NumPy and in TensorFlow.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3): four
random words are a bijective mix of a 128-bit counter under a 64-bit key. The key is the example's seed, the counter is
(block, draw, stream), so there is no state to save and streams cost nothing at run time. TensorFlow ships it as the
kernel behind `tf.random.stateless_*`: a draw is one small op. The NumPy form below is vectorized over the seeds.
"""

from typing import Any

import numpy as np
from jaxtyping import Int64, UInt32

from core.errors import UserError

_PHILOX = 1  # TensorFlow's number of the algorithm.
_LOW32 = np.uint64(0xFFFFFFFF)
_64_BITS = (1 << 64) - 1


def _fold(stream: int, i: int) -> int:
  """Returns the stream number of child `i` of `stream`: the splitmix64 finalizer (Steele et al. 2014)."""
  z = (stream + (i + 1) * 0x9E3779B97F4A7C15) & _64_BITS
  z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
  z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64_BITS
  return z ^ (z >> 31)


def philox(seed: Int64[np.ndarray, "*batch"], low: int, high: int, count: int) -> UInt32[np.ndarray, "*batch count"]:
  """Returns the first `count` words of Philox4x32-10 under the keys `seed`, from the counter (`low`, `high`) on.

  Args:
    seed: the 64-bit keys.
    low: lower 64 bits of the counter, the ones that go up by one for every four words.
    high: upper 64 bits of the counter.
    count: how many words, at least 1.
  """
  blocks = -(-count // 4)
  key = np.asarray(seed, np.int64).view(np.uint64)[..., None]
  key = np.stack([key & _LOW32, key >> np.uint64(32)])
  counter = np.uint64(low) + np.arange(blocks, dtype=np.uint64)
  shape = key.shape[1:-1] + (blocks,)
  # A round multiplies words 0 and 2 and mixes the products into words 1 and 3; both halves go in one array operation.
  even = np.stack([np.broadcast_to(counter & _LOW32, shape), np.full(shape, high & 0xFFFFFFFF, np.uint64)])
  odd = np.stack([np.broadcast_to(counter >> np.uint64(32), shape), np.full(shape, high >> 32, np.uint64)])
  multiplier = np.array([0xD2511F53, 0xCD9E8D57], np.uint64).reshape((2,) + (1,) * len(shape))
  weyl = np.array([0x9E3779B9, 0xBB67AE85], np.uint64).reshape(multiplier.shape)
  rounds = np.arange(10, dtype=np.uint64).reshape((10,) + (1,) * key.ndim)
  for round_key in (key + weyl * rounds) & _LOW32:
    product = (even * multiplier)[::-1]
    even, odd = (product >> np.uint64(32)) ^ odd ^ round_key, product & _LOW32
  words = np.stack([even[0], odd[0], even[1], odd[1]], axis=-1).astype(np.uint32)
  return words.reshape(shape[:-1] + (4 * blocks,))[..., :count]


class Rng:
  """Draws for one example (a TensorFlow `int64` scalar seed) or for a batch of them (NumPy `int64[batch]` seeds).

  Every call draws from a counter of its own, so the k-th draw of a stream never depends on how much the others took.
  A batch draws, at index b, what the example with seed b draws alone: low and high may be arrays that broadcast.
  """

  def __init__(self, seed: Any, stream: int = 0):
    self._in_numpy = isinstance(seed, int | np.integer | np.ndarray)
    if self._in_numpy:
      self._key = np.asarray(seed, np.int64)
    else:
      import tensorflow as tf

      self._key = tf.reshape(tf.bitcast(tf.cast(seed, tf.int64), tf.uint64), [1])
    self._stream, self._draws = stream, 0

  def fold_in(self, i: int) -> "Rng":
    """Returns an independent generator, the `i`-th child of this one; `i` is a Python integer, not below zero."""
    child = Rng.__new__(Rng)
    child._in_numpy, child._key = self._in_numpy, self._key
    child._stream, child._draws = _fold(self._stream, i), 0
    return child

  def uniform(self, low: Any = 0.0, high: Any = 1.0, count: Any = None) -> Any:
    """Draws float32 in [low, high), with 23 random bits; one value, or `count` of them on a last axis."""
    if self._in_numpy:
      words = self._words(count)
      unit = (words & np.uint32(0x7FFFFF) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
      low, high = np.float32(low), np.float32(high)
    else:
      import tensorflow as tf

      unit = tf.raw_ops.StatelessRandomUniformV2(dtype=tf.float32, **self._next(count))
    return low + unit * (high - low)

  def integer(self, low: Any, high: Any, count: Any = None) -> Any:
    """Draws int32 in [low, high), uniform to (high - low) / 2**32; one value, or `count` of them on a last axis."""
    if self._in_numpy:
      low, high = np.int64(low), np.int64(high)
      return (low + self._words(count).astype(np.int64) % (high - low)).astype(np.int32)
    import tensorflow as tf

    low, high = tf.convert_to_tensor(low, tf.int32), tf.convert_to_tensor(high, tf.int32)
    return tf.raw_ops.StatelessRandomUniformIntV2(minval=low, maxval=high, **self._next(count))

  def key(self) -> Any:
    """Draws an `int32[2]` seed for one call of `tf.random.stateless_*` or `tf.image.stateless_*`."""
    if self._in_numpy:
      return self._words(2).view(np.int32)
    import tensorflow as tf

    return tf.raw_ops.StatelessRandomUniformFullIntV2(dtype=tf.int32, **self._next(2))

  def _counter(self) -> tuple[int, int]:
    self._draws += 1
    return (self._draws - 1) << 32, self._stream

  def _words(self, count: int | None) -> UInt32[np.ndarray, "..."]:
    words = philox(self._key, *self._counter(), count=1 if count is None else count)
    return words[..., 0] if count is None else np.ascontiguousarray(words)

  def _next(self, count: Any) -> dict[str, Any]:
    import tensorflow as tf

    shape = tf.zeros([0], tf.int32) if count is None else tf.reshape(count, [1])
    counter = np.array(self._counter(), np.uint64)  # Not a list: TensorFlow would take it through float64.
    return dict(shape=shape, key=self._key, counter=counter, alg=_PHILOX)


class NoRng:
  """Stands for the generator of an example without a seed, for ops that may not draw.

  Raises:
    UserError: one does.
  """

  def fold_in(self, i: int) -> "NoRng":
    """Returns itself."""
    return self

  def _refuse(self, *args: Any, **kwargs: Any) -> Any:
    raise UserError("is random and there is no key '_seed'; training gives it, evaluation must not be random")

  uniform = integer = key = _refuse
