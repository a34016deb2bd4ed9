"""Losses on logits: each gives one value an example, `[batch]`, to be averaged by the caller."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def softmax_xent(logits: Float[Array, "batch classes"], labels: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """Computes the cross-entropy of a softmax with target distributions (one-hot, mixed or smoothed labels), in nats."""
  return optax.softmax_cross_entropy(logits, labels)


def sigmoid_xent(logits: Float[Array, "batch classes"], labels: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """Computes the sum over classes of binary cross-entropies, in nats.

  Beyer et al. 2020, "Are we done with ImageNet?".
  """
  return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)


def weighted_softmax_xent(
  logits: Float[Array, "*batch classes"],
  labels: Float[Array, "*batch classes"],
  weights: Float[Array, "*batch"] | None = None,
  label_smoothing: float = 0.0,
  normalize: bool = True,
) -> Float[Array, "batch"]:
  """Computes the cross-entropy averaged over the positions of an example by weight, in nats.

  Positions are those of a sequence, and padding has weight 0. Smoothing is that of the published models of sequences
  (UViM's): what the target loses goes to the other classes alone, where `optax.smooth_labels` gives the target a share.

  Args:
    logits: unnormalized log-probabilities, `[batch, ..., classes]`.
    labels: target distributions, of the same shape.
    weights: how much each position counts, `[batch, ...]`; an example of total weight 0 has loss 0. None: 1 each.
    label_smoothing: mass in [0, 1) moved from the target, in equal parts to each of the V - 1 others.
    normalize: divide by the total weight of the example; False gives the sum.
  """
  others = (1 - labels) / (labels.shape[-1] - 1) if label_smoothing else 0
  losses = optax.softmax_cross_entropy(logits, (1 - label_smoothing) * labels + label_smoothing * others)
  weights = jnp.ones_like(losses) if weights is None else weights
  axes = tuple(range(1, losses.ndim))
  total = jnp.sum(losses * weights, axis=axes)
  return total / jnp.maximum(jnp.sum(weights, axis=axes), 2e-38) if normalize else total


# By the name that a config gives: `fn(logits, labels) -> [batch]`.
LOSSES = {"softmax_xent": softmax_xent, "sigmoid_xent": sigmoid_xent}
