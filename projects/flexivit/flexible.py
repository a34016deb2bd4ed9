"""A task at several sequence lengths, one of them drawn for each step (Beyer et al. 2023, section 3.3)."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Key

from core.errors import UserError, naming
from core.models import flexi_vit
from core.state import Batch, Predict, Variables
from core.tasks.classification import Classification
from core.tasks.distillation import Distillation
from core.tasks.task import Loss, Task
from projects.flexivit import recipe as recipes

# Tells the draws of sizes from whatever else is made of the run's seed.
_STREAM = 0xF1E


def draw(seed: int, step: int, probabilities: tuple[float, ...]) -> int:
  """Returns the index that `step` draws, a pure function of its arguments, the same on every machine."""
  uniform = np.random.default_rng((seed % 2**64, _STREAM, step)).random()  # Seeds here are not negative.
  # The last sum may be a rounding below 1.
  return min(int(np.searchsorted(np.cumsum(probabilities), uniform, side="right")), len(probabilities) - 1)


class Flexible(Task):
  """A task of a FlexiViT, made once for each size; every step is one of them. They share all variables.

  Its predictions are those of the tasks, with the size behind: `predict_8` for 8 patches along a side. Without a size
  they are those of the first; a teacher's do not depend on it.

  Args:
    recipe: of the run; `flexi` says which sizes.
  """

  kind: ClassVar[type[Task]]
  """The task at one size."""

  def __init__(self, recipe: recipes.FlexibleClassification | recipes.FlexibleDistillation):
    _refuse_fixed_length(recipe)
    self._seed = recipe.seed
    self._sizes, self._probabilities = recipe.flexi.seqhw.v, recipe.flexi.seqhw.probabilities
    self._tasks = {size: self.kind(recipe.at(size)) for size in self._sizes}
    self._any = self._tasks[self._sizes[0]]
    self.load, self.frozen = self._any.load, self._any.frozen

  def form(self, step: int) -> int:
    return self._sizes[draw(self._seed, step, self._probabilities)]

  def in_form(self, form: int) -> Task:
    return self._tasks[form]

  def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
    if "image" in batch and batch["image"].ndim == 4:
      with naming("config.flexi.seqhw.v"):
        for size in self._sizes:
          flexi_vit.patch_size(batch["image"].shape[1:3], (size, size))
    return self._any.init(rng, batch)

  def check(self, batch: Batch) -> None:
    self._any.check(batch)

  def loss(self, variables: Variables, batch: Batch, rng: Key[Array, ""]) -> Loss:
    """Returns the loss of the first size; `in_form` gives the task of any other."""
    return self._any.loss(variables, batch, rng)

  @property
  def predict(self) -> Mapping[str, Predict]:
    at_sizes = {f"{name}_{size}": fn for size, task in self._tasks.items() for name, fn in task.predict.items()}
    return {**self._any.predict, **at_sizes}


def _refuse_fixed_length(recipe: recipes.FlexibleClassification | recipes.FlexibleDistillation) -> None:
  """Refuses a model that has one sequence length where each step draws one."""
  is_student = isinstance(recipe, recipes.FlexibleDistillation)
  options = recipe.models["student"].options if is_student else recipe.model
  if options.seqhw is not None:
    key = "config.student.seqhw" if is_student else "config.model.seqhw"
    raise UserError(f"{key} is of no effect where config.flexi.seqhw gives the lengths; leave it out")


class FlexibleClassification(Flexible):
  """Classification at several sequence lengths."""

  Recipe = recipes.FlexibleClassification
  kind = Classification


class FlexibleDistillation(Flexible):
  """Distillation at several sequence lengths of the student."""

  Recipe = recipes.FlexibleDistillation
  kind = Distillation
