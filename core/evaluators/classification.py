"""Accuracy and loss of a classifier over a whole dataset, each example counted exactly once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from core import sharding as sharding_lib
from core.data import feed, pipeline
from core.errors import UserError
from core.training import losses
from core.training.state import TrainState
from core.training.task import Batch, Predict


class Evaluator:
  """Top-1 accuracy (`prec@1`) and mean loss (`loss`).

  An example may have several labels, a multi-hot vector: the prediction is right if its best class is any of them, as
  in Beyer et al. 2020 ("Are we done with ImageNet?"). Examples with no label at all do not count.

  Args:
    predict: `(params, batch) -> (logits, ...)`.
    sharding: how a batch lies on the devices.
    data: the dataset, `{"name": ..., "split": ...}`.
    pp_fn: preprocessing that leaves `image` and the labels.
    batch_size: examples a step over all devices; the last batch is padded.
    loss_name: a function of `core.training.losses`.
    label_key: where the one-hot or multi-hot labels are.
    cache: keep the preprocessed examples in memory from the first run on.
  """

  def __init__(
    self,
    predict: Predict,
    *,
    sharding: NamedSharding,
    data: Mapping[str, Any],
    pp_fn: str,
    batch_size: int,
    loss_name: str = "softmax_xent",
    label_key: str = "labels",
    cache: bool = False,
  ):
    sharding_lib.check_batch_size(batch_size, sharding, "evals batch_size")
    self._data = pipeline.eval_batches(
      data,
      pp_fn,
      batch_size=batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      cache=cache,
    )
    self._sharding = sharding
    self._sums = jax.jit(
      _make_sums(predict, losses.get(loss_name), label_key), out_shardings=sharding_lib.replicated(sharding.mesh)
    )

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `state` may be shapes, too.

    Raises:
      UserError: the data cannot be read, or do not fit the model or the loss.
    """
    with feed.to_devices(self._data, self._sharding) as batches:
      jax.eval_shape(self._sums, state.params, next(batches))

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """The metrics of `state.params`; None if `interrupted()` became true on the way."""
    sums = []
    batches = feed.to_devices(self._data, self._sharding)
    try:
      for batch in batches:
        sums.append(self._sums(state.params, batch))
        if interrupted():
          return None
    finally:
      batches.close()
    # Summed in double precision on the host, in the order of the batches: exact counts, and the same total every time.
    correct, loss, count = np.sum(np.asarray(jax.device_get(sums), np.float64), axis=0)
    if count == 0:
      raise UserError("evals: no example has a label")
    return {"prec@1": float(correct / count), "loss": float(loss / count)}


def _make_sums(predict: Predict, loss_fn: Callable, label_key: str) -> Callable[[Any, Batch], Float[Array, "3"]]:
  def sums(params: Any, batch: Batch) -> Float[Array, "3"]:
    """(correct predictions, summed loss, examples counted) of one batch."""
    for key in ("image", label_key):
      if key not in batch:
        kept = ", ".join(name for name in batch if not name.startswith("_"))
        raise UserError(f"evals: pp_fn must leave {key!r}; it leaves: {kept}")
    logits, *_ = predict(params, batch)
    labels = batch[label_key]
    if labels.shape != logits.shape:
      raise UserError(
        f"evals: pp_fn leaves labels of shape {labels.shape[1:]}, the model has {logits.shape[1:]} logits"
      )
    counts = (batch["_mask"] > 0) & (jnp.max(labels, axis=-1) > 0)
    best = jnp.argmax(logits, axis=-1)
    correct = jnp.take_along_axis(labels, best[:, None], axis=-1)[:, 0] > 0
    loss = loss_fn(logits, labels)
    # Selected rather than multiplied: a padded example may give NaN.
    return jnp.stack([jnp.sum(jnp.where(counts, x.astype(jnp.float32), 0.0)) for x in (correct, loss, counts)])

  return sums
