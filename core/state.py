"""What a run carries from step to step, and what a checkpoint holds."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

Batch = Mapping[str, jax.Array]
Params = Any
Predict = Callable[[Params, Batch], tuple[Any, Any]]


@struct.dataclass
class TrainState:
  """The state of training after `step` updates. Everything else is a function of it and of the config."""

  step: Int[Array, ""]
  params: Any
  opt_state: Any

  @classmethod
  def create(cls, params: Any, opt_state: Any) -> "TrainState":
    """The state before the first update."""
    return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state)


def step_rng(seed: int, step: Int[Array, ""], stream: int = 0) -> jax.Array:
  """The key of one step's randomness: a pure function of seed and step, so a resumed run draws the same numbers."""
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
