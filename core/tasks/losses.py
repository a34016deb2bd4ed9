"""Losses on logits: each gives one value an example, `[batch]`, to be averaged by the caller."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from core.errors import UserError, nearest


def softmax_xent(logits: Float[Array, "batch classes"], labels: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """Cross-entropy of a softmax with target distributions (one-hot, mixed or smoothed labels), in nats."""
  return optax.softmax_cross_entropy(logits, labels)


def sigmoid_xent(logits: Float[Array, "batch classes"], labels: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """Sum over classes of binary cross-entropies, in nats (Beyer et al. 2020, "Are we done with ImageNet?")."""
  return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)


def weighted_softmax_xent(
  logits: Float[Array, "*batch classes"],
  labels: Float[Array, "*batch classes"],
  weights: Float[Array, "*batch"],
  label_smoothing: float = 0.0,
) -> Float[Array, "batch"]:
  """Cross-entropy averaged over the positions of an example by weight, in nats; sequences with padding, say.

  Args:
    logits: unnormalized log-probabilities, `[batch, ..., classes]`.
    labels: target distributions, of the same shape.
    weights: how much each position counts, `[batch, ...]`; an example of total weight 0 has loss 0.
    label_smoothing: mass in [0, 1) moved from the target to the uniform distribution.
  """
  losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, label_smoothing))
  axes = tuple(range(1, losses.ndim))
  return jnp.sum(losses * weights, axis=axes) / jnp.maximum(jnp.sum(weights, axis=axes), 1e-8)


_LOSSES = {"softmax_xent": softmax_xent, "sigmoid_xent": sigmoid_xent}


def get(name: str):
  """The classification loss `fn(logits, labels) -> [batch]` that a config names.

  Raises:
    UserError: no loss has that name.
  """
  if name not in _LOSSES:
    raise UserError(f"config.loss: no loss {name!r}{nearest(name, _LOSSES)}")
  return _LOSSES[name]
