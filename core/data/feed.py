"""Host batches -> global sharded `jax.Array`s, made by a background thread a few batches ahead of the consumer."""

import queue
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from core.errors import UserError

Sharding = jax.sharding.Sharding

_JOIN_SECONDS = 2.0
# JAX computes in 32 bits; wider values are brought to them on the host.
_NARROW = {"int64": np.int32, "uint64": np.uint32, "float64": np.float32}


class DeviceFeed:
  """An iterator of batches on devices; see `to_devices`. Use it in a `with`, or `close()` it when leaving early."""

  def __init__(
    self, batches: Iterable[dict[str, Shaped[np.ndarray, "batch ..."]]], shardings, depth: int, keep_strings: bool
  ):
    self._ready: queue.SimpleQueue = queue.SimpleQueue()
    self._room = threading.Semaphore(depth)
    stop = threading.Event()
    # The thread knows nothing of this object, so that one that is dropped ends its thread.
    thread = threading.Thread(
      target=_run,
      args=(iter(batches), shardings, keep_strings, self._ready, self._room, stop),
      daemon=True,
      name="feed",
    )
    thread.start()
    self._finalizer = weakref.finalize(self, _end, thread, stop, self._room)

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return self

  def __next__(self) -> dict[str, Any]:
    if not self._finalizer.alive:
      raise StopIteration
    batch, error = self._ready.get()
    if batch is None:
      self.close()
      raise error if error else StopIteration
    self._room.release()
    return batch

  def close(self) -> None:
    """Ends the thread; at once, but for the batch in the making. What it had made is dropped."""
    self._finalizer()

  def __enter__(self) -> "DeviceFeed":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def to_devices(
  batches: Iterable[dict[str, Shaped[np.ndarray, "batch ..."]]],
  shardings: Sharding | Mapping[str, Sharding],
  *,
  depth: int = 2,
  keep_strings: bool = False,
) -> DeviceFeed:
  """Feeds batches to devices: an iterator of dicts of global `jax.Array`s.

  Args:
    batches: this process's part of every batch, dicts of arrays [local batch, ...].
    shardings: of the global arrays; one for all keys, or one for each.
    depth: how many batches are made ahead of the consumer, at most.
    keep_strings: pass on what no device can hold (text, objects) as the host's NumPy arrays; else it is left out.

  Returns:
    The iterator. 64-bit numbers become 32-bit ones. An error in `batches` is raised where its batch would have come.
    Transfers are explicit, as `jax.transfer_guard("disallow")` wants them.
  """
  return DeviceFeed(batches, shardings, depth, keep_strings)


def _run(batches, shardings, keep_strings, ready: queue.SimpleQueue, room: threading.Semaphore, stop: threading.Event):
  try:
    while True:
      room.acquire()
      batch = None if stop.is_set() else next(batches, None)
      if batch is None or stop.is_set():
        ready.put((None, None))
        return
      ready.put((put(batch, shardings, keep_strings=keep_strings), None))
  except BaseException as error:  # Whatever it is, it belongs to the consumer.
    ready.put((None, error))


def _end(thread: threading.Thread, stop: threading.Event, room: threading.Semaphore) -> None:
  stop.set()
  room.release()
  if thread is not threading.current_thread():
    thread.join(_JOIN_SECONDS)


def put(
  batch: dict[str, Shaped[np.ndarray, "batch ..."]],
  shardings: Sharding | Mapping[str, Sharding],
  *,
  keep_strings: bool = False,
) -> dict[str, Any]:
  """Puts one batch on the devices; see `to_devices`.

  Raises:
    UserError: numbers that 32 bits cannot hold, or a key without a sharding.
  """
  arrays, strings = {}, {}
  for key, array in batch.items():
    array = np.asarray(array)
    if array.dtype.kind in "biufcV":  # V: bfloat16 and its like.
      arrays[key] = _narrow(key, array)
    else:
      strings[key] = array
  if not isinstance(shardings, Mapping):
    shardings = dict.fromkeys(arrays, shardings)
  for key in arrays:
    if key not in shardings:
      raise UserError(f"batch: no sharding for {key!r}; there are ones for {', '.join(sorted(shardings))}")
  shardings = {key: shardings[key] for key in arrays}
  if all(sharding.is_fully_addressable for sharding in shardings.values()):
    on_devices = jax.device_put(
      arrays, shardings
    )  # One process holds all of every array: one call, less than half the time.
  else:
    on_devices = {k: jax.make_array_from_process_local_data(shardings[k], array) for k, array in arrays.items()}
  return on_devices | (strings if keep_strings else {})


def _narrow(key: str, array: np.ndarray) -> np.ndarray:
  kind = _NARROW.get(array.dtype.name)
  if kind is None:
    return array
  with np.errstate(over="ignore"):
    narrow = array.astype(kind)
  if array.dtype.kind in "iu" and not np.array_equal(narrow, array):
    raise UserError(f"batch: {key!r} holds integers up to {array.max()}; devices compute with 32 bits")
  if array.dtype.kind == "f" and np.any(np.isinf(narrow) & np.isfinite(array)):
    raise UserError(f"batch: {key!r} holds numbers beyond float32, in which devices compute")
  return narrow
