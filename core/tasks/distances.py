"""Distances of a student's outputs to a teacher's: one value an example, `[batch]`, to be averaged by the caller."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from core.recipe import tasks as recipes

Distance = Callable[[Float[Array, "batch classes"], Float[Array, "batch classes"]], Float[Array, "batch"]]


def kl(
  student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"], *, t: float = 1.0
) -> Float[Array, "batch"]:
  """Computes t^2 KL(p || q) in nats, of p = softmax(teacher / t) and q = softmax(student / t).

  The temperature t evens out the probabilities of both; the factor t^2 keeps the gradient's size (Hinton et al. 2015,
  "Distilling the knowledge in a neural network", section 2.1).

  Args:
    student, teacher: logits.
    t: the temperature, greater than 0.
  """
  log_p, log_q = (jax.nn.log_softmax(logits / t, axis=-1) for logits in (teacher, student))
  # Where p is 0 its logarithm may be -inf, and counts nothing.
  return t**2 * jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p - log_q, 0.0), axis=-1)


def euclidean(student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """Computes the length of the difference of the outputs; its gradient is finite where they are equal."""
  return jnp.sqrt(jnp.sum((student - teacher) ** 2, axis=-1) + 1e-12)


def hard(student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """Computes the cross-entropy of the student's logits with the class that the teacher prefers, in nats."""
  best = jnp.argmax(teacher, axis=-1, keepdims=True)
  return -jnp.take_along_axis(jax.nn.log_softmax(student, axis=-1), best, axis=-1)[..., 0]


_FUNCTIONS = {recipes.Kl: kl, recipes.Euclidean: euclidean, recipes.Hard: hard}


def make(options: recipes.Kl | recipes.Euclidean | recipes.Hard) -> Distance:
  """Returns the distance `fn(student, teacher) -> [batch]` of a config's `distance` and `distance_kw`."""
  return functools.partial(_FUNCTIONS[type(options)], **vars(options))
