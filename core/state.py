"""What a run carries from step to step, and what a checkpoint holds; and the types that tasks and evaluators share."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, Key

from core.errors import UserError

Batch = Mapping[str, jax.Array]
Params = Any
# {"params": the parameters}, and beside them whatever other Flax collections a model has: batch statistics, say.
Variables = Mapping[str, Any]
Predict = Callable[[Variables, Batch], tuple[Any, Any]]


@struct.dataclass
class TrainState:
  """The state of training after `step` updates. Everything else is a function of it and of the config.

  Attributes:
    step: updates made.
    params: the parameters, which the optimizer trains.
    opt_state: the optimizer's.
    collections: variables that are no parameters, by collection; empty for models without them.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: Any
  collections: Mapping[str, Any] = struct.field(default_factory=dict)

  @classmethod
  def create(cls, variables: Variables, opt_state: Any) -> "TrainState":
    """Returns the state before the first update."""
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    return cls(jnp.zeros((), jnp.int32), variables["params"], opt_state, collections)

  @property
  def variables(self) -> Variables:
    """All variables of the model."""
    return {"params": self.params, **self.collections}


def step_rng(seed: int, step: Int[Array, ""], stream: int = 0) -> Key[Array, ""]:
  """Returns the key of one step's randomness, a pure function of seed and step: a resumed run draws the same.

  Raises:
    UserError: a seed that 32 bits do not hold; `jax.random.key` would take it for another.
  """
  if not 0 <= seed < 2**32:
    raise UserError(f"a seed must be a whole number in [0, {2**32 - 1}], got {seed}")
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
