"""Host batches on devices, by a thread."""

import threading
import time

import jax
import numpy as np
import pytest

from core.data import feed
from core.errors import UserError

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def batches(count=5, pulled=None):
  for i in range(count):
    if pulled is not None:
      pulled.append(i)
    yield {"image": np.full((4, 2), i, np.float32), "label": np.arange(4) + i, "name": np.array([b"x"] * 4, object)}


def feed_threads():
  return [thread for thread in threading.enumerate() if thread.name == "feed"]


def eventually(claim, seconds=60.0):
  end = time.monotonic() + seconds
  while not claim() and time.monotonic() < end:
    time.sleep(0.01)
  return claim()


def test_batches_come_in_order_and_end():
  got = list(feed.to_devices(batches(), HERE))
  assert [int(batch["image"][0, 0]) for batch in got] == [0, 1, 2, 3, 4]
  assert all(isinstance(batch["image"], jax.Array) for batch in got)
  assert eventually(lambda: not feed_threads())


def test_types_that_devices_hold():
  wide = {
    "label": np.array([3, -1]),
    "x": np.zeros(2),
    "image": np.zeros((2, 3), np.uint8),
    "ok": np.array([True, False]),
  }
  found = {key: str(value.dtype) for key, value in feed.put(wide, HERE).items()}
  assert found == {"label": "int32", "x": "float32", "image": "uint8", "ok": "bool"}
  with pytest.raises(UserError, match="'label' holds integers up to"):
    feed.put({"label": np.array([2**40])}, HERE)
  with pytest.raises(UserError, match="'x' holds numbers beyond float32"):
    feed.put({"x": np.array([1.0, -1e39])}, HERE)
  assert np.isinf(feed.put({"x": np.array([np.inf, np.nan])}, HERE)["x"][0])


def test_strings_stay_on_the_host_or_are_dropped():
  assert set(next(feed.to_devices(batches(), HERE))) == {"image", "label"}
  kept = next(feed.to_devices(batches(), HERE, keep_strings=True))["name"]
  assert isinstance(kept, np.ndarray)
  assert kept.tolist() == [b"x"] * 4


def test_no_more_than_depth_batches_are_made_ahead():
  pulled = []
  with feed.to_devices(batches(100, pulled), HERE, depth=3) as fed:
    assert eventually(lambda: len(pulled) == 3)
    time.sleep(0.1)
    assert len(pulled) == 3
    next(fed)
    assert eventually(lambda: len(pulled) == 4)


def test_an_error_comes_where_its_batch_would_have():
  def failing():
    yield from batches(2)
    raise UserError("record 7 is damaged")

  fed = feed.to_devices(failing(), HERE)
  next(fed), next(fed)
  with pytest.raises(UserError, match="record 7 is damaged"):
    next(fed)
  assert eventually(lambda: not feed_threads())


def test_close_ends_the_thread_of_an_endless_input():
  endless = (batch for _ in iter(int, 1) for batch in batches(1))
  fed = feed.to_devices(endless, HERE)
  next(fed)
  fed.close()
  assert not feed_threads()
  with pytest.raises(StopIteration):
    next(fed)


def test_a_dropped_feed_ends_its_thread():
  fed = feed.to_devices((batch for _ in iter(int, 1) for batch in batches(1)), HERE)
  next(fed)
  del fed
  assert eventually(lambda: not feed_threads())


def test_transfers_are_explicit():
  jax.config.update("jax_transfer_guard", "disallow")
  try:
    assert len(list(feed.to_devices(batches(), HERE))) == 5
  finally:
    jax.config.update("jax_transfer_guard", "allow")


def test_one_sharding_a_key():
  got = feed.put({"image": np.zeros((4, 2)), "label": np.zeros(4)}, {"image": HERE, "label": HERE})
  assert got["image"].sharding == HERE
  with pytest.raises(UserError, match="no sharding for 'label'"):
    feed.put({"label": np.zeros(4)}, {"image": HERE})
