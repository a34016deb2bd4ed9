"""A batch taken in equal parts, one after the other, so that no more than one part's activations are in memory.

A loss that is a mean over examples is the mean of its parts' losses. One that compares the examples of a batch with
each other is not, but its memory goes into the embeddings z = f(w, x), not into the loss L(z). So it is computed as
L(z_1, ..., z_n), of which the backward pass is (GradCache, Gao et al. 2021, section 3; Pham et al. 2021, section 4):

    z_i = f(w, x_i)                   part by part, keeping nothing else
    v   = L'(z_1, ..., z_n)           the gradient by all embeddings
    L'(w) = sum_i f'(w, x_i)^T v_i    part by part, each of which is embedded again for its own backward pass
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Shaped

from core.errors import UserError
from core.state import Batch, Variables

Outputs = Any
Embed = Callable[[Variables, Batch, Key[Array, ""]], tuple[Outputs, Mapping[str, Any]]]


def split(batch: Batch, parts: int) -> Batch:
  """Returns the parts of a batch, arrays [parts, examples, ...].

  Part i has the examples i, i + parts, i + 2 parts, ...: it stays split over the devices as the batch is.

  Raises:
    UserError: they would not be equal.
  """

  def split_one(x: Shaped[Array, "batch ..."]) -> Shaped[Array, "parts part ..."]:
    if x.shape[0] % parts:
      raise UserError(f"config.grad_accum_steps: a batch of {x.shape[0]} cannot be split into {parts} equal parts")
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

  return jax.tree.map(split_one, batch)


def embedded(
  embed: Embed, variables: Variables, batch: Batch, rng: Key[Array, ""], parts: int
) -> tuple[Outputs, Mapping[str, Any]]:
  """Returns `embed(variables, batch, rng)`, computed in parts where these are more than one.

  Each part has a key of its own, the same for its two passes. Each starts from the collections of `variables`, and the
  mean of what the parts make of them is returned.

  Args:
    embed: returns arrays [batch, ...], one row for each example by itself, and the collections that it updated.
    variables: by which the outputs are differentiated.
    batch: of which the examples are embedded.
    rng: the key of all parts.
    parts: how many.

  Raises:
    UserError: the batch cannot be split so.
  """
  if parts == 1:
    return embed(variables, batch, rng)

  # In a loop the compiler cannot merge the second pass with the first.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def embed_part(part: Batch, rng: Key[Array, ""]) -> tuple[Outputs, Mapping[str, Any]]:
    return embed(variables, part, rng)

  def add_part(total: Any, part: tuple[Batch, Key[Array, ""]]) -> tuple[Any, Outputs]:
    outputs, updated = embed_part(*part)
    return jax.tree.map(lambda x, y: x + jax.lax.stop_gradient(y), total, updated), outputs

  each = (split(batch, parts), jax.random.split(rng, parts))
  _, updated = jax.eval_shape(embed_part, *jax.tree.map(lambda x: x[0], each))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), updated)
  total, outputs = jax.lax.scan(add_part, zeros, each)
  return jax.tree.map(_joined, outputs), jax.tree.map(lambda x: x / parts, total)


def _joined(x: Shaped[Array, "parts part ..."]) -> Shaped[Array, "batch ..."]:
  """Returns the examples in the order that they had before `split`."""
  return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
