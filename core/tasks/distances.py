"""Distances of a student's outputs to a teacher's: one value an example, `[batch]`, to be averaged by the caller."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from core.errors import UserError, check_arguments, nearest

Distance = Callable[[Float[Array, "batch classes"], Float[Array, "batch classes"]], Float[Array, "batch"]]


def kl(
  student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"], *, t: float = 1.0
) -> Float[Array, "batch"]:
  """t^2 KL(p || q) in nats, of the teacher's p = softmax(teacher / t) to the student's q = softmax(student / t).

  The temperature t evens out the probabilities of both; the factor t^2 keeps the gradient's size (Hinton et al. 2015,
  "Distilling the knowledge in a neural network", section 2.1).

  Args:
    student, teacher: logits.
    t: the temperature, greater than 0.

  Raises:
    UserError: it is not.
  """
  if isinstance(t, bool) or not isinstance(t, int | float) or not t > 0:
    raise UserError(f"config.distance_kw.t: a temperature must be a number greater than 0, got {t!r}")
  log_p, log_q = (jax.nn.log_softmax(logits / t, axis=-1) for logits in (teacher, student))
  # Where p is 0 its logarithm may be -inf, and counts nothing.
  return t**2 * jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p - log_q, 0.0), axis=-1)


def euclidean(student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """The length of the difference of the outputs; its gradient is finite where they are equal."""
  return jnp.sqrt(jnp.sum((student - teacher) ** 2, axis=-1) + 1e-12)


def hard(student: Float[Array, "batch classes"], teacher: Float[Array, "batch classes"]) -> Float[Array, "batch"]:
  """Cross-entropy of the student's logits with the class that the teacher prefers, in nats."""
  best = jnp.argmax(teacher, axis=-1, keepdims=True)
  return -jnp.take_along_axis(jax.nn.log_softmax(student, axis=-1), best, axis=-1)[..., 0]


DISTANCES = {"kl": kl, "euclidean": euclidean, "hard": hard}


def get(name: str, options: Mapping[str, Any]) -> Distance:
  """The distance `fn(student, teacher) -> [batch]` that a config names by `distance`, with its `distance_kw`.

  Raises:
    UserError: no distance has that name, or it has no such options.
  """
  if name not in DISTANCES:
    raise UserError(f"config.distance: no distance {name!r}{nearest(str(name), DISTANCES)}")
  check_arguments(
    DISTANCES[name], options, where="config.distance_kw", of=f"the distance {name}", supplied=("student", "teacher")
  )
  distance = functools.partial(DISTANCES[name], **options)
  jax.eval_shape(distance, *[jax.ShapeDtypeStruct((1, 1), jnp.float32)] * 2)  # Refuses values of its options.
  return distance
