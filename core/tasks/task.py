"""What a project supplies to the training loop: a model, its loss, and what evaluators may ask of it."""

import abc
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from core.state import Batch, Params, Predict


class Task(abc.ABC):
  """A project's idea in a few functions, all but `load` traced by JAX; `core.training.loop.run` does the rest."""

  load: Callable[[Params], Params] | None = None
  """Only where training does not start from scratch: given the fresh parameters as NumPy arrays, those to start from
  (published weights, say). Not called on resume."""

  @abc.abstractmethod
  def init(self, rng: Key[Array, ""], batch: Batch) -> Mapping[str, Any]:
    """Fresh variables, `{"params": ...}`, for batches of these shapes.

    Raises:
      UserError: the batch lacks a key, or its shapes contradict the config.
    """

  def check(self, batch: Batch) -> None:
    """Refuses what the first batch shows by its values, where shapes do not tell; by default nothing.

    Args:
      batch: of training, on the host; where there are several processes, this one's part.

    Raises:
      UserError: the model cannot take such values, a token that its vocabulary lacks for one.
    """
    del batch

  def form(self, step: int) -> Hashable:
    """Only where steps are not all the same program: which one `step`, counted from 1, is; by default always one.

    A pure function, cheap, the same in all processes and after a resume.
    """
    del step
    return None

  def in_form(self, form: Hashable) -> "Task":
    """The task whose loss the steps of that form take; parameters and state are the same in all forms."""
    del form
    return self

  @abc.abstractmethod
  def loss(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Mapping[str, jax.Array]]:
    """The scalar to differentiate, averaged over the batch, and scalars worth logging beside it."""

  @property
  @abc.abstractmethod
  def predict(self) -> Mapping[str, Predict]:
    """`{"name": fn(params, batch) -> (output, intermediates)}`: what an evaluator's `pred` may name."""
