"""A task at several sequence lengths, one of them drawn for each step (Beyer et al. 2023, section 3.3)."""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core.errors import UserError
from core.models import flexi_vit
from core.state import Batch, Params, Predict
from core.tasks.task import Task

# Tells the draws of sizes from whatever else is made of the run's seed.
_STREAM = 0xF1E


def read_sizes(config: ConfigDict) -> tuple[tuple[int, ...], tuple[float, ...]]:
  """The sequence lengths of `config.flexi.seqhw` and the probability of each.

  `seqhw` is `dict(v=[5, 6, 8], p=[1, 1, 2])`, as in published configs: patches along each side, and weights, which are
  equal if `p` is left away.

  Raises:
    UserError: no lengths, one twice or no whole number, or weights that are not positive or not as many.
  """
  key = "config.flexi.seqhw"
  given = config.flexi.get("seqhw")
  if not isinstance(given, ConfigDict) or not set(given) <= {"v", "p"} or len(config.flexi) > 1:
    raise UserError(
      f"config.flexi must be dict(seqhw=dict(v=[patches a side, ...], p=[weights, ...])), got {config.flexi.to_dict()}"
    )
  sizes = tuple(given.get("v", ()))
  if not sizes:
    raise UserError(f"{key}.v is empty: list the numbers of patches along a side, [8, 10, 15] say")
  for size in sizes:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
      raise UserError(f"{key}.v: {size!r} is no number of patches along a side")
  if len(set(sizes)) < len(sizes):
    raise UserError(f"{key}.v has a size twice: {sizes}; give it a larger weight in {key}.p instead")
  weights = tuple(given.get("p") or [1] * len(sizes))
  if len(weights) != len(sizes):
    raise UserError(f"{key}.p has {len(weights)} weights, and {key}.v has {len(sizes)} sizes")
  for weight in weights:
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not 0 < weight < math.inf:
      raise UserError(f"{key}.p: {weight!r} is no weight; a size that is not wanted is left out of {key}.v")
  return sizes, tuple(weight / sum(weights) for weight in weights)


def draw(seed: int, step: int, probabilities: tuple[float, ...]) -> int:
  """The index that `step` draws: a pure function of its arguments, the same on every machine."""
  uniform = np.random.default_rng((seed % 2**64, _STREAM, step)).random()  # Seeds here are not negative.
  # The last sum may be a rounding below 1.
  return min(int(np.searchsorted(np.cumsum(probabilities), uniform, side="right")), len(probabilities) - 1)


class Flexible(Task):
  """A task of a FlexiViT, made once for each size; every step is one of them. They share all parameters.

  Its predictions are those of the tasks, with the size behind: `predict_8` for 8 patches along a side. Without a size
  they are those of the first; a teacher's do not depend on it.

  Args:
    config: of the run; `flexi` says which sizes.
    at_size: the task for one size, `fn(seqhw) -> Task`.
  """

  def __init__(self, config: ConfigDict, at_size: Callable[[int], Task]):
    self._seed = config.get("seed", 0)
    self._sizes, self._probabilities = read_sizes(config)
    self._tasks = {size: at_size(size) for size in self._sizes}
    self._any = self._tasks[self._sizes[0]]
    self.load = self._any.load

  def form(self, step: int) -> int:
    return self._sizes[draw(self._seed, step, self._probabilities)]

  def in_form(self, form: int) -> Task:
    return self._tasks[form]

  def init(self, rng: Key[Array, ""], batch: Batch) -> Mapping[str, Any]:
    if "image" in batch and batch["image"].ndim == 4:
      for size in self._sizes:
        flexi_vit.patch_size(batch["image"].shape[1:3], size)
    return self._any.init(rng, batch)

  def check(self, batch: Batch) -> None:
    self._any.check(batch)

  def loss(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Mapping[str, jax.Array]]:
    """That of the first size; `in_form` gives the task of any other."""
    return self._any.loss(params, batch, rng)

  @property
  def predict(self) -> Mapping[str, Predict]:
    at_sizes = {f"{name}_{size}": fn for size, task in self._tasks.items() for name, fn in task.predict.items()}
    return {**self._any.predict, **at_sizes}
