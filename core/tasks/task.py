"""What a project supplies to the training loop: a model, its loss, and what evaluators may ask of it."""

import abc
from collections.abc import Callable, Hashable, Mapping
from typing import ClassVar

import jax
from jaxtyping import Array, Float, Key

from core.recipe.recipe import Recipe as CommonRecipe
from core.state import Batch, Predict, Variables

Loss = tuple[Float[Array, ""], Mapping[str, jax.Array]] | tuple[Float[Array, ""], Mapping[str, jax.Array], Variables]


class Task(abc.ABC):
  """A project's idea in a few functions, all but `load` and `check` traced by JAX; `core.training` does the rest.

  Made of a recipe, `Task(recipe)`.
  """

  Recipe: ClassVar[type] = CommonRecipe
  """The dataclass that the task's config is read into."""

  frozen: tuple[str, ...] = ()
  """Regexes over names of parameters that never train, whatever the schedule says: a teacher's."""

  load: Callable[[Variables], Variables] | None = None
  """Only where training does not start from scratch: given the fresh variables as NumPy arrays, those to start from
  (published weights, say). Not called on resume."""

  loss_in_parts: Callable[[Variables, Batch, Key[Array, ""], int], Loss] | None = None
  """Only where the loss compares the examples of a batch with each other, so that it is no mean over parts of it: given
  what `loss` is, and `parts`, the number of parts to embed the batch in (`core.tasks.in_parts`), the loss of the whole
  batch. It takes the place of `loss` where `config.grad_accum_steps` is more than 1."""

  @abc.abstractmethod
  def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
    """Returns fresh variables for batches of these shapes: `{"params": ...}`, and other collections of the model.

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
    """Returns which program `step`, counted from 1, runs; by default always the same.

    A pure function, cheap, the same in all processes and after a resume.
    """
    del step
    return None

  def in_form(self, form: Hashable) -> "Task":
    """Returns the task whose loss the steps of that form take; its variables are the same in all forms."""
    del form
    return self

  @abc.abstractmethod
  def loss(self, variables: Variables, batch: Batch, rng: Key[Array, ""]) -> Loss:
    """Returns the scalar to differentiate by `variables["params"]`, averaged over the batch, and scalars to be logged.

    A model with other collections returns these as well, as the pass updated them: `{"batch_stats": ...}`. What it
    leaves out, a teacher's part say, stays as it is.
    """

  @property
  @abc.abstractmethod
  def predict(self) -> Mapping[str, Predict]:
    """What an evaluator's `pred` may name: `{"name": fn(variables, batch) -> (output, intermediates)}`."""
