"""Contrastive loss and accuracy over a dataset of images with their texts, a batch at a time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float

from core import sharding as sharding_lib
from core.errors import UserError, nearest
from core.evaluators import batches, features, transfer_features
from core.state import Batch, Params, Predict, TrainState


class Evaluator:
  """`loss`, and `img2txt_acc` and `txt2img_acc`: how often the right one is nearest of all in the batch.

  All three depend on `batch_size`, as they do in training. Batches go by the order of the split, however many processes
  there are; the last is smaller, and every example counts once. Another of the same score as the right one counts as
  nearer.

  Args:
    predict: `(params, batch) -> (embeddings of images, embeddings of texts, out)`; of `out` the factor `t` on their
      inner products is read and, for the sigmoid loss, the bias `b`.
    sharding: how a batch lies on the devices.
    data: the dataset, `{"name": ..., "split": ...}`.
    pp_fn: preprocessing that leaves `image` and `labels`.
    batch_size: examples a step over all devices.
    loss_name: "softmax" (Radford et al. 2021), the mean of both directions, or "sigmoid" (Zhai et al. 2023, section
      3.2), summed over texts; in nats an image.
    cache: see `core.evaluators.batches.open_batches`.
  """

  default_pred = "contrastive"

  def __init__(
    self,
    predict: Predict,
    *,
    sharding: NamedSharding,
    data: Mapping[str, Any],
    pp_fn: str,
    batch_size: int,
    loss_name: str = "softmax",
    cache: bool | str | None = None,
  ):
    if loss_name not in _LOSSES:
      raise UserError(f"evals.loss_name: no contrastive loss {loss_name!r}{nearest(str(loss_name), _LOSSES)}")
    self._sharding = sharding
    self.data = batches.open_batches(data, pp_fn, batch_size=batch_size, sharding=sharding, cache=cache)
    self._extractor = features.Extractor(lambda params, batch: _embed(predict, loss_name, params, batch), sharding)
    self._sums = jax.jit(
      lambda *rows: _sums(_LOSSES[loss_name], *rows), out_shardings=sharding_lib.replicated(sharding.mesh)
    )

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would.

    Raises:
      UserError: the data cannot be read or do not fit the model, or the prediction is not of this kind.
    """
    self._extractor.shapes(state.params, self.data)

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """The metrics of `state.params`; None if `interrupted()` became true on the way."""
    rows = self._extractor.whole(state.params, self.data, interrupted)
    if rows is None:
      return None
    size, sums = self.data.batch_size, []
    for low in range(0, self.data.num_examples, size):
      part = [rows[name][low : low + size] for name in ("zimg", "ztxt", "t", "b")]
      real = np.arange(size) < len(part[0])
      padded = [np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)]) for x in part]
      sums.append(jax.device_get(self._sums(*(transfer_features.put(x, self._sharding) for x in (*padded, real)))))
      if interrupted():
        return None
    return {name: float(sum(float(each[name]) for each in sums) / self.data.num_examples) for name in sums[0]}


def softmax_loss(logits: Float[Array, "n n"], real: Bool[Array, "n"]) -> Float[Array, "n"]:
  """Of each pair, the mean of both directions' cross-entropy among the real ones, in nats."""
  pairs = jnp.diagonal(logits)
  over = lambda axis: jax.nn.logsumexp(_among(logits, real, axis), axis=axis)
  return (over(1) + over(0)) / 2 - pairs


def sigmoid_loss(logits: Float[Array, "n n"], real: Bool[Array, "n"]) -> Float[Array, "n"]:
  """Of each image, the binary cross-entropies with all real texts, summed, in nats."""
  signs = 2.0 * jnp.eye(len(logits)) - 1.0
  return jnp.sum(jnp.where(real[None, :], -jax.nn.log_sigmoid(signs * logits), 0.0), axis=1)


_LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def _embed(predict: Predict, loss_name: str, params: Params, batch: Batch) -> dict[str, Array]:
  """Both embeddings of each pair, and the model's `t` and `b` beside each."""
  batches.require(batch, "image", "labels")
  made = predict(params, batch)
  if not isinstance(made, tuple) or len(made) < 3 or not hasattr(made[0], "shape") or not hasattr(made[1], "shape"):
    raise UserError("evals: contrastive needs a prediction (embeddings of images, embeddings of texts, out)")
  zimg, ztxt, out = made[:3]
  if zimg.shape != ztxt.shape:
    raise UserError(f"evals: embeddings of images have shape {zimg.shape}, those of texts {ztxt.shape}")
  for name in ("t", "b") if loss_name == "sigmoid" else ("t",):
    if name not in out:
      raise UserError(f"evals.loss_name: the {loss_name} loss needs the model's {name!r}, which its prediction lacks")
  scalar = lambda name: jnp.broadcast_to(jnp.asarray(out.get(name, 0.0), jnp.float32).reshape(-1), zimg.shape[:1])
  return {"zimg": zimg.astype(jnp.float32), "ztxt": ztxt.astype(jnp.float32), "t": scalar("t"), "b": scalar("b")}


def _sums(
  loss: Callable,
  zimg: Float[Array, "n dim"],
  ztxt: Float[Array, "n dim"],
  t: Float[Array, "n"],
  b: Float[Array, "n"],
  real: Bool[Array, "n"],
) -> dict[str, Array]:
  """Sums over the pairs of a batch that are real."""
  with jax.default_matmul_precision("highest"):
    logits = t[0] * (zimg @ ztxt.T) + b[0]
  total = lambda values: jnp.sum(jnp.where(real, values.astype(jnp.float32), 0.0))
  return {
    "loss": total(loss(logits, real)),
    "img2txt_acc": total(_nearest(logits, real, axis=1)),
    "txt2img_acc": total(_nearest(logits, real, axis=0)),
  }


def _among(logits: Float[Array, "n n"], real: Bool[Array, "n"], axis: int) -> Float[Array, "n n"]:
  """The logits without those of padding along an axis."""
  return jnp.where(jnp.expand_dims(real, 1 - axis), logits, -jnp.inf)


def _nearest(logits: Float[Array, "n n"], real: Bool[Array, "n"], axis: int) -> Bool[Array, "n"]:
  others = jnp.where(jnp.eye(len(logits), dtype=bool), -jnp.inf, _among(logits, real, axis))
  return jnp.diagonal(logits) > others.max(axis=axis)
