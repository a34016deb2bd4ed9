"""Distances of a student's outputs to a teacher's: one value an example, `[batch]`, to be averaged by the caller."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from core.recipe import distances as recipes

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


def l2(student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """Computes the squared length of the difference of the outputs."""
  return jnp.sum((student - teacher) ** 2, axis=-1)


def logsoftmax_euclidean(
  student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"]
) -> Float[Array, "batch"]:
  """Computes the length of the difference of the logarithms of the probabilities, in nats.

  What both outputs have in common for all classes does not count, as in a softmax.
  """
  return euclidean(*(jax.nn.log_softmax(logits, axis=-1) for logits in (student, teacher)))


def euclidean(student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """Computes the length of the difference of the outputs; its gradient is finite where they are equal."""
  return jnp.sqrt(jnp.sum((student - teacher) ** 2, axis=-1) + 1e-12)


def hard(
  student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"], *, ls: float = 0.0
) -> Float[Array, "batch"]:
  """Computes KL(p || q) in nats, of q = softmax(student) and p at the class that the teacher prefers.

  Without smoothing it is the cross-entropy with that class. With it the entropy of p, a constant, is taken off: so the
  published distance does, which is 0 where the student gives p.

  Args:
    student, teacher: logits.
    ls: mass in [0, 1) of p that the other classes share.
  """
  log_q = jax.nn.log_softmax(student, axis=-1)
  best = jnp.argmax(teacher, axis=-1, keepdims=True)
  of_best = jnp.take_along_axis(log_q, best, axis=-1)[..., 0]
  if not ls:
    return -of_best
  others = ls / (student.shape[-1] - 1)
  return (1 - ls) * (math.log(1 - ls) - of_best) + ls * math.log(others) - others * (log_q.sum(axis=-1) - of_best)


def agree(
  student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"], *, k: int = 1
) -> Float[Array, "batch"]:
  """Tells by 1 or 0 whether the class that the teacher prefers is among the k that the student prefers.

  It has no gradient, and is more where a distance is less: a number to be reported.
  """
  best = jnp.argmax(teacher, axis=-1)[..., None]
  return jnp.any(jax.lax.top_k(student, k)[1] == best, axis=-1).astype(jnp.float32)


# Of the options of each, which are its arguments.
FUNCTIONS = {
  recipes.Kl: kl,
  recipes.Euclidean: euclidean,
  recipes.L2: l2,
  recipes.LogSoftmaxEuclidean: logsoftmax_euclidean,
  recipes.Hard: hard,
  recipes.Agree: agree,
}


def make(options: recipes.DistanceOptions) -> Distance:
  """Returns the distance `fn(student, teacher) -> [batch]` of a config's `distance` and `distance_kw`."""
  return functools.partial(FUNCTIONS[type(options)], **vars(options))
