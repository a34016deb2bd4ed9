"""Records read in sequence and shuffled within windows, by `tf.data`, in the order of a `StreamOrder`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.data.order import ReadPlan, StreamOrder
from core.data.tfrecord import Records, Segments, read
from core.import_tensorflow import import_tensorflow

_LANES_AT_ONCE = 16  # Lanes that fill their first window, or wait for the disk, at the same time.


def records(
  plan: ReadPlan,
  orders: Sequence[tuple[Records, StreamOrder] | None],
  start_step: int,
  *,
  pad_damaged: bool = False,
) -> Any:
  """Returns the `tf.data.Dataset` of serialized records in the order of this process's positions, from `start_step` on.

  Args:
    plan: the positions of this process.
    orders: for each component its records and their order, or None for one that lies in memory: an empty string stands
      at its positions.
    start_step: the first batch. Each lane reads from the start of the window in which it begins, no more.
    pad_damaged: see `core.data.tfrecord.read`.
  """
  tf = import_tensorflow()
  lanes = np.array(plan.local_lanes)

  def lane_dataset(lane):
    streams = [
      tf.data.Dataset.from_tensors(b"").repeat()
      if order is None
      else _component(*order, plan, component, lane, start_step, pad_damaged)
      for component, order in enumerate(orders)
    ]
    return streams[0] if len(streams) == 1 else tf.data.Dataset.choose_from_datasets(streams, choices(lane))

  def choices(lane):
    """Returns the components of a lane's positions."""
    block, skip = divmod(start_step * plan.lanes.width, plan.mixture.block_length)

    def read_block(number):
      found = tf.numpy_function(lambda *words: plan.mixture.block(*map(int, words))[0], [lane, number], tf.int64)
      return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(found, [plan.mixture.block_length]))

    return tf.data.Dataset.counter(block).flat_map(read_block).skip(skip)

  return tf.data.Dataset.from_tensor_slices(lanes).interleave(
    lane_dataset,
    cycle_length=len(lanes),
    block_length=plan.lanes.width,
    num_parallel_calls=min(len(lanes), _LANES_AT_ONCE),
    deterministic=True,
  )


def _component(source: Records, order: StreamOrder, plan, component: int, lane: Any, start_step: int, pad: bool) -> Any:
  """Returns one lane's records of one component."""
  tf = import_tensorflow()
  first, last = plan.local_lanes[0], plan.local_lanes[-1]
  starts = [order.epoch_of(n, plan.lane_start(n, component, start_step)) for n in range(first, last + 1)]
  epoch0, place0 = (tf.gather(np.array(column, np.int64), lane - first) for column in zip(*starts))
  window0 = place0 // order.window

  def locate(number, epoch, start):
    return tuple(source.locate(*order.segments(int(number), int(epoch), int(start))))

  def epoch_windows(epoch):
    window = tf.where(epoch == epoch0, window0, 0)
    where = tf.numpy_function(locate, [lane, epoch, window * order.window], [tf.string, tf.int64, tf.int64, tf.int64])
    segments = Segments(*(tf.ensure_shape(array, [None]) for array in where))
    found = read(segments, pad_damaged=pad, passes=source.passes)
    return found.batch(order.window).enumerate(window).map(lambda number, window: (epoch, number, window))

  def shuffled(epoch, number, window):
    def window_order(*words):
      return order.window_order(*map(int, words))

    places = tf.numpy_function(window_order, [lane, epoch, number, tf.size(window)], tf.int64)
    places = tf.data.Dataset.from_tensor_slices(tf.ensure_shape(places, [None]))
    return places.map(lambda place: window[place])

  # One window drains while the next one fills: a lane holds two at most.
  windows = tf.data.Dataset.counter(epoch0).flat_map(epoch_windows).prefetch(1)
  return windows.flat_map(shuffled).skip(place0 % order.window)


def windows_of(source: Records, order: StreamOrder, lane: int, index: int) -> Segments:
  """Returns where the window of a lane's `index`-th element lies: what must be sound for it to be read."""
  epoch, place = order.epoch_of(lane, index)
  pieces, firsts, counts = order.segments(lane, epoch, place // order.window * order.window)
  counts = np.diff(np.minimum(np.cumsum(counts), order.window), prepend=0)
  keep = counts > 0
  return source.locate(pieces[keep], firsts[keep], counts[keep])
