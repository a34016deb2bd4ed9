"""Contrastive loss and accuracy over a dataset of images with their texts, a batch at a time."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float

from core import sharding as sharding_lib
from core.evaluators import batches, features, transfer_features
from core.recipe.evaluators import Contrastive
from core.recipe.types import Refused
from core.state import Batch, Predict, Variables


class Evaluator:
  """`loss`, and `img2txt_acc` and `txt2img_acc`: how often the right one is nearest of all in the batch.

  All three depend on `batch_size`, as they do in training. Batches go by the order of the split, however many processes
  there are. The last is smaller, and every example counts once. Where another has the score of the right one, the right
  one is not nearest.

  Args:
    options: see there.
    predict: `(variables, batch) -> (embeddings of images, embeddings of texts, out)`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.
  """

  def __init__(self, options: Contrastive, predict: Predict, *, sharding: NamedSharding, where: str):
    self._sharding = sharding
    self.data = batches.open_dataset(options, sharding, where)
    self._extractor = features.Extractor(functools.partial(_embed, predict, options.loss_name), sharding, where)
    self._sums = jax.jit(
      functools.partial(_sums, _LOSSES[options.loss_name]), out_shardings=sharding_lib.replicated(sharding.mesh)
    )

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `variables` may be shapes, too.

    Raises:
      UserError: the data cannot be read or do not fit the model, or the prediction is not of this kind.
    """
    self._extractor.shapes(variables, self.data)

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics; None if `interrupted()` became true on the way."""
    rows = self._extractor.whole(variables, self.data, interrupted)
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
  """Returns of each pair the mean of both directions' cross-entropy among the real ones, in nats."""
  over_texts, over_images = (jax.nn.logsumexp(_among(logits, real, axis), axis=axis) for axis in (1, 0))
  return (over_texts + over_images) / 2 - jnp.diagonal(logits)


def sigmoid_loss(logits: Float[Array, "n n"], real: Bool[Array, "n"]) -> Float[Array, "n"]:
  """Returns of each image the sum of the binary cross-entropies with all real texts, in nats."""
  signs = 2.0 * jnp.eye(len(logits)) - 1.0
  return jnp.sum(jnp.where(real[None, :], -jax.nn.log_sigmoid(signs * logits), 0.0), axis=1)


_LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def _embed(predict: Predict, loss_name: str, variables: Variables, batch: Batch) -> dict[str, Array]:
  """Returns both embeddings of each pair, and the model's `t` and `b` beside each."""
  batches.require(batch, "image", "labels")
  made = predict(variables, batch)
  if not isinstance(made, tuple) or len(made) < 3 or not hasattr(made[0], "shape") or not hasattr(made[1], "shape"):
    raise Refused("must be a prediction (embeddings of images, embeddings of texts, out)", key="pred")
  zimg, ztxt, out = made[:3]
  if zimg.shape != ztxt.shape:
    line = f"gives embeddings of images of shape {zimg.shape}, those of texts are {ztxt.shape}"
    raise Refused(line, key="pred")
  for name in ("t", "b") if loss_name == "sigmoid" else ("t",):
    if name not in out:
      line = f"is {loss_name!r}, which needs the model's {name!r}; its prediction does not give it"
      raise Refused(line, key="loss_name")
  scalars = {
    name: jnp.broadcast_to(jnp.asarray(out.get(name, 0.0), jnp.float32).reshape(-1), zimg.shape[:1])
    for name in ("t", "b")
  }
  return {"zimg": zimg.astype(jnp.float32), "ztxt": ztxt.astype(jnp.float32), **scalars}


def _sums(
  loss: Callable,
  zimg: Float[Array, "n dim"],
  ztxt: Float[Array, "n dim"],
  t: Float[Array, "n"],
  b: Float[Array, "n"],
  real: Bool[Array, "n"],
) -> dict[str, Array]:
  """Returns sums over the pairs of a batch that are real."""
  with jax.default_matmul_precision("highest"):
    logits = t[0] * (zimg @ ztxt.T) + b[0]
  of_pairs = {
    "loss": loss(logits, real),
    "img2txt_acc": _is_nearest(logits, real, axis=1),
    "txt2img_acc": _is_nearest(logits, real, axis=0),
  }
  return {name: jnp.sum(jnp.where(real, values.astype(jnp.float32), 0.0)) for name, values in of_pairs.items()}


def _among(logits: Float[Array, "n n"], real: Bool[Array, "n"], axis: int) -> Float[Array, "n n"]:
  """Returns the logits with -inf for those of padding along an axis."""
  return jnp.where(jnp.expand_dims(real, 1 - axis), logits, -jnp.inf)


def _is_nearest(logits: Float[Array, "n n"], real: Bool[Array, "n"], axis: int) -> Bool[Array, "n"]:
  """Tells of each pair whether the right one is nearer than all others along an axis."""
  others = jnp.where(jnp.eye(len(logits), dtype=bool), -jnp.inf, _among(logits, real, axis))
  return jnp.diagonal(logits) > others.max(axis=axis)
