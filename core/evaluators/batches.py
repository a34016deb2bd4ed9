"""The data of an evaluator: every example of a split once, and sums over them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from core import sharding as sharding_lib
from core.data import feed, pipeline
from core.errors import UserError, nearest
from core.state import Batch, Params

# What published configs call the choices. Raw data are read anew, be it from the memory that the system has free.
_CACHE = {"final_data": True, "none": False, "pipeline": None, "raw_data": None}


def open_batches(
  data: Mapping[str, Any],
  pp_fn: str,
  *,
  batch_size: int,
  sharding: NamedSharding,
  cache: bool | str | None = None,
  key: str = "data",
) -> pipeline.EvalInput:
  """This process's batches of a dataset, see `core.data.pipeline.EvalInput`.

  Args:
    data: the dataset, `{"name": ..., "split": ...}`.
    pp_fn: the preprocessing string.
    batch_size: examples a step over all devices; the last batch is padded.
    sharding: how a batch is to lie on the devices.
    cache: keep the preprocessed examples in memory from the first run on: True ("final_data"), False ("none"), or None
      ("pipeline", "raw_data"), if they are small.
    key: of `data` among the evaluator's options, for messages.

  Raises:
    UserError: whatever is wrong with these arguments or the data.
  """
  sharding_lib.check_batch_size(batch_size, sharding, "evals.batch_size")
  if isinstance(cache, str):
    if cache not in _CACHE:
      raise UserError(f"evals.cache cannot be {cache!r}{nearest(cache, _CACHE)}")
    cache = _CACHE[cache]
  process = dict(process_index=jax.process_index(), process_count=jax.process_count())
  return pipeline.eval_batches(data, pp_fn, batch_size=batch_size, cache=cache, where=f"evals.{key}", **process)


def require(batch: Batch, *keys: str) -> None:
  """Refuses batches that lack one of `keys`.

  Raises:
    UserError: it names the key, and those that there are.
  """
  for key in keys:
    if key not in batch:
      kept = ", ".join(name for name in batch if not name.startswith("_"))
      raise UserError(f"evals: pp_fn must leave {key!r}; it leaves: {kept}")


class Totals:
  """Sums over a dataset of what a function sums over a batch, each example counted exactly once.

  Args:
    fn: `(params, batch) -> a tree of arrays`, traced by JAX. It must leave out the examples whose `_mask` is 0.
    data: this process's batches.
    sharding: how a batch lies on the devices.
  """

  def __init__(self, fn: Callable[[Params, Batch], Any], data: pipeline.EvalInput, sharding: NamedSharding):
    self._data, self._sharding = data, sharding
    self._fn = jax.jit(fn, out_shardings=sharding_lib.replicated(sharding.mesh))

  def check(self, params: Params) -> None:
    """Refuses, by the shapes of one batch, what the first run would; `params` may be shapes, too."""
    with feed.to_devices(self._data, self._sharding) as batches:
      jax.eval_shape(self._fn, params, next(batches))

  def run(self, params: Params, interrupted: Callable[[], bool] = lambda: False) -> Any:
    """The sums, as float64 arrays of the host; None if `interrupted()` became true on the way."""
    sums = []
    with feed.to_devices(self._data, self._sharding) as batches:
      for batch in batches:
        sums.append(self._fn(params, batch))
        # One batch computes and one waits for its turn; more would fill the devices.
        jax.block_until_ready(sums[-2:-1])
        if interrupted():
          return None
    # Summed in double precision on the host, in the order of the batches: exact counts, and the same total every time.
    return jax.tree.map(lambda *each: np.sum(np.asarray(each, np.float64), axis=0), *jax.device_get(sums))
