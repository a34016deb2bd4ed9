"""Which example stands at which position of the training input: pure arithmetic, so that a resume needs only the step.

Batch `t` of the global batch size B holds the positions [t B, (t+1) B). What stands at a position, and the seed of its
random augmentation, follow from the run's seed and the position alone; all randomness is one hash. Nothing else is ever
saved, and the number of processes does not matter.

Three bijections make it up:
- `Lanes` deals the positions out to lanes, each a fixed range of every batch, so that processes read apart.
- `Mixture` deals a lane's positions out to the components of a mixture, in exact proportion.
- `permutation` (data in memory) or `StreamOrder` (data read in sequence) says which record stands there.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64, UInt64

from core.errors import UserError

# The first word of a hash says what it is for: two uses of the same numbers must not give the same bits.
_EXAMPLE, _RECORDS, _FILES, _ROTATION, _WINDOW, _CHOICE = range(6)

_MAX_LANES = 64
_MIXTURE_PARTS = 10_000  # Weights are kept to one part in this many.


def hash64(*words: int | Int[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
  """Returns 64 well mixed bits of some integers: one SplitMix64 step (Steele et al. 2014) a word. Arrays broadcast."""
  state = np.zeros(1, np.uint64)
  for word in words:
    word = np.uint64(word & (2**64 - 1)) if isinstance(word, int) else np.asarray(word).astype(np.uint64)
    state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
  return state


def permutation(n: int, *words: int) -> Int64[np.ndarray, "n"]:
  """Returns a permutation of 0..n-1 drawn by `words`: the order of n hashes, the same under every NumPy version."""
  return np.argsort(hash64(*words, np.arange(n)), kind="stable")


def example_seeds(seed: int, ids: Int[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
  """Returns the seeds of the random augmentation of the examples at the positions `ids`."""
  return hash64(seed, _EXAMPLE, ids).view(np.int64)


@functools.lru_cache(maxsize=8)
def _epoch_order(n: int, *words: int) -> Int64[np.ndarray, "n"]:
  return permutation(n, _RECORDS, *words)


def rows(n: int, seed: int, component: int, positions: Int64[np.ndarray, "batch"]) -> Int64[np.ndarray, "batch"]:
  """Returns the records, of `n` in memory, that stand at a component's `positions`: a new permutation every epoch."""
  found = np.empty_like(positions)
  epochs, places = np.divmod(positions, n)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    found[here] = _epoch_order(n, seed, component, int(epoch))[places[here]]
  return found


@dataclasses.dataclass(frozen=True)
class Lanes:
  """Lane l owns the slots [l b, (l+1) b) of every batch, b = batch_size / count; `index` counts a lane's positions."""

  batch_size: int
  count: int

  @property
  def width(self) -> int:
    """A lane's share b of one batch."""
    return self.batch_size // self.count

  def before(self, lane: int, position: int) -> int:
    """Counts the positions below `position` in the lanes below `lane`."""
    batches, slot = divmod(position, self.batch_size)
    return batches * lane * self.width + min(slot, lane * self.width)

  def index(self, lane: int, position: int) -> int:
    """Counts the positions below `position` in `lane`."""
    return self.before(lane + 1, position) - self.before(lane, position)

  def position(self, lane: int, index: Int64[np.ndarray, "n"] | int) -> Int64[np.ndarray, "n"] | int:
    """Returns the position of a lane's `index`-th element."""
    return index // self.width * self.batch_size + lane * self.width + index % self.width

  def share(self, lane: int, epoch: int, n: int) -> tuple[int, int]:
    """Returns the first and the number of the records, of an epoch of `n`, that `lane` reads: one for each position."""
    first, last = epoch * n, (epoch + 1) * n
    return self.before(lane, last) - self.before(lane, first), self.index(lane, last) - self.index(lane, first)


def lanes_for(batch_size: int, process_count: int) -> Lanes:
  """Returns at most 64 lanes, a multiple of `process_count`, which must divide `batch_size`.

  The order of a streamed source is the same for all process counts that divide gcd(batch_size, 64): 1, 2, 4, 8, ...
  """
  count = math.gcd(batch_size, _MAX_LANES)
  return Lanes(batch_size, math.lcm(count, process_count))


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Deals a lane's indices out to components: of every `sum(parts)` indices, `parts[c]` in hashed places are c's."""

  seed: int
  parts: tuple[int, ...]

  @classmethod
  def of(cls, seed: int, weights: Sequence[float]) -> "Mixture":
    """Returns the mixture of positive `weights`, each kept to one ten-thousandth of their sum.

    Raises:
      UserError: a weight is too small a part of the sum to be kept.
    """
    bounds = np.round(np.cumsum(weights) / np.sum(weights) * _MIXTURE_PARTS).astype(np.int64)
    parts = np.diff(bounds, prepend=0)
    if min(weights) <= 0 or parts.min() <= 0:
      least = 1 / _MIXTURE_PARTS
      raise UserError(f"config.input.data: a weight is at least {least} of their sum, got {list(weights)}")
    return cls(seed, tuple(map(int, parts // np.gcd.reduce(parts))))

  @property
  def block_length(self) -> int:
    """Indices that are worked out at a time: about _MIXTURE_PARTS, in whole rounds of the parts."""
    return _MIXTURE_PARTS // sum(self.parts) * sum(self.parts)

  def block(self, lane: int, number: int) -> tuple[Int64[np.ndarray, "block"], Int64[np.ndarray, "block"]]:
    """Returns the component of each index of a lane's block, and its index among those of that component."""
    return _mixture_block(self, lane, number)

  def locate(self, lane: int, first: int, count: int) -> tuple[Int64[np.ndarray, "count"], Int64[np.ndarray, "count"]]:
    """Returns the component, and the index within it, of a lane's indices [first, first + count)."""
    start, stop = first // self.block_length, (first + count - 1) // self.block_length
    blocks = [self.block(lane, number) for number in range(start, stop + 1)]
    cut = slice(first - start * self.block_length, first - start * self.block_length + count)
    return tuple(np.concatenate(arrays)[cut] for arrays in zip(*blocks))

  def count(self, lane: int, component: int, index: int) -> int:
    """Counts a lane's indices below `index` that are of `component`."""
    number, rest = divmod(index, self.block_length)
    rounds = number * self.block_length // sum(self.parts)
    return rounds * self.parts[component] + int((self.block(lane, number)[0][:rest] == component).sum())


@functools.lru_cache(maxsize=256)
def _mixture_block(mixture: Mixture, lane: int, number: int):
  rounds, length = mixture.block_length // sum(mixture.parts), mixture.block_length
  draws = hash64(_CHOICE, mixture.seed, lane, number, np.arange(length)).reshape(rounds, -1)
  places = np.argsort(draws, axis=1, kind="stable").ravel()
  component = np.repeat(np.arange(len(mixture.parts)), mixture.parts)[places]
  index = np.empty_like(component)
  for c, part in enumerate(mixture.parts):
    index[component == c] = (number * np.int64(rounds) * part) + np.arange(rounds * part)
  return component, index


@dataclasses.dataclass(frozen=True)
class StreamOrder:
  """The order of a component whose records are read in sequence, lane by lane, and shuffled within windows.

  Each epoch puts the pieces (files, or parts of them) in a new order, rotated by a random number of records so that a
  single file does not fill the same windows every time; a lane reads its share of that order and shuffles every
  `window` records of it. Every record is read exactly once an epoch.

  Attributes:
    takes: number of records of each piece.
    window: records that a lane shuffles at a time.
  """

  seed: int
  component: int
  lanes: Lanes
  takes: tuple[int, ...]
  window: int

  @property
  def size(self) -> int:
    return sum(self.takes)

  def epoch_of(self, lane: int, index: int) -> tuple[int, int]:
    """Returns the epoch of a lane's `index`-th record, and its place among the lane's records of that epoch."""
    epoch = self.lanes.position(lane, index) // self.size
    return epoch, index - self.lanes.index(lane, epoch * self.size)

  def segments(self, lane: int, epoch: int, start: int = 0) -> tuple[Int64[np.ndarray, "segments"], ...]:
    """Returns piece, first record in it and number of records of what a lane reads in an epoch, from `start` on."""
    words = self.seed, self.component, epoch
    takes = np.array(self.takes)
    pieces = np.tile(permutation(len(takes), _FILES, *words), 2)
    ends = np.cumsum(takes[pieces])
    starts = ends - takes[pieces]
    first, count = self.lanes.share(lane, epoch, self.size)
    first = (first + int(hash64(_ROTATION, *words)[0])) % self.size
    low, high = np.maximum(starts, first + start), np.minimum(ends, first + count)
    keep = high > low
    return pieces[keep], (low - starts)[keep], (high - low)[keep]

  def window_order(self, lane: int, epoch: int, window: int, size: int) -> Int64[np.ndarray, "size"]:
    """Returns the order in which a lane gives the `size` records of its `window`-th window of an epoch."""
    return permutation(size, _WINDOW, self.seed, self.component, epoch, lane, window)

  def record(self, lane: int, index: int) -> tuple[int, int]:
    """Returns the piece, and the record in it, of a lane's `index`-th element: what the stream must give there."""
    epoch, place = self.epoch_of(lane, index)
    window, slot = divmod(place, self.window)
    size = min(self.window, self.lanes.share(lane, epoch, self.size)[1] - window * self.window)
    start = window * self.window + self.window_order(lane, epoch, window, size)[slot]
    piece, first, _ = self.segments(lane, epoch, int(start))
    return int(piece[0]), int(first[0])


@dataclasses.dataclass(frozen=True)
class Slots:
  """One process's part of one batch: arrays [batch / processes] in the order of the positions.

  Attributes:
    position: where in the whole training input.
    component: of the mixture; 0 where there is none.
    index: position within the component, as if it were alone.
    lane: the lane of the slot.
    lane_index: index within the component's lane.
  """

  position: Int64[np.ndarray, "local"]
  component: Int64[np.ndarray, "local"]
  index: Int64[np.ndarray, "local"]
  lane: Int64[np.ndarray, "local"]
  lane_index: Int64[np.ndarray, "local"]


@dataclasses.dataclass(frozen=True)
class ReadPlan:
  """What one process of a job reads at each step."""

  lanes: Lanes
  mixture: Mixture | None
  process_index: int = 0
  process_count: int = 1

  @property
  def local_batch(self) -> int:
    """Examples a step on this process."""
    return self.lanes.batch_size // self.process_count

  @property
  def local_lanes(self) -> range:
    """The lanes that this process reads."""
    count = self.lanes.count // self.process_count
    return range(self.process_index * count, (self.process_index + 1) * count)

  def slots(self, step: int) -> Slots:
    """Returns this process's part of batch `step`."""
    width = self.lanes.width
    lane = np.repeat(np.array(self.local_lanes), width)
    index = step * width + np.tile(np.arange(width), len(self.local_lanes))
    position = self.lanes.position(lane, index)
    if self.mixture is None:
      return Slots(position, np.zeros_like(position), position, lane, index)
    found = [self.mixture.locate(number, step * width, width) for number in self.local_lanes]
    component, lane_index = (np.concatenate(arrays) for arrays in zip(*found))
    return Slots(position, component, self.lanes.position(lane, lane_index), lane, lane_index)

  def lane_start(self, lane: int, component: int, step: int) -> int:
    """Counts the elements of a component that its lane has given before batch `step`."""
    index = step * self.lanes.width
    return index if self.mixture is None else self.mixture.count(lane, component, index)
