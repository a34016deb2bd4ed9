"""The task that most of these projects have: an image in, class probabilities out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from core.errors import UserError, naming
from core.models import registry as models
from core.recipe import tasks as recipes
from core.recipe.types import Refused
from core.state import Batch, Predict, Variables
from core.tasks import losses
from core.tasks import variables as variables_lib
from core.tasks.mixup import mixup
from core.tasks.task import Loss, Task


class Classification(Task):
  """Softmax or sigmoid cross-entropy, with mixup where the config says so, of any model of images.

  Args:
    recipe: see `core.recipe.tasks.Classification`.
  """

  Recipe = recipes.Classification

  def __init__(self, recipe: recipes.Classification):
    self._recipe = recipe
    self._model = models.get(recipe.model_name).make(recipe.num_classes, recipe.model)
    self._loss = losses.LOSSES[recipe.loss]
    self.load = self._load_weights if recipe.model_init else None

  def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
    _check(batch, self._recipe.num_classes)
    with naming("config.model"):
      (logits, _), variables = self._model.init_with_output(rng, batch["image"])
    if "labels" in batch and logits.shape != batch["labels"].shape:  # Else a loss could broadcast one to the other.
      shape = logits.shape[1:]
      raise UserError(f"config.model gives outputs of shape {shape} an image, not a number a class; choose a pool_type")
    if bias := self._recipe.init_head_bias:
      # With many classes a sigmoid loss starts far too high at a bias of 0: nearly every class is absent.
      head = variables["params"]["head"]
      head["bias"] = jnp.full_like(head["bias"], bias)
    return variables

  def _load_weights(self, variables: Variables) -> Variables:
    recipe = self._recipe
    with naming("config.model_init"):
      return variables_lib.load(recipe.model_name, variables, recipe.model_init, recipe.model, recipe.model_load)

  def loss(self, variables: Variables, batch: Batch, rng: Key[Array, ""]) -> Loss:
    _require(batch, "labels")
    rng_mixup, rng_dropout = jax.random.split(rng)
    images, labels = mixup(rng_mixup, self._recipe.mixup.p, batch["image"], batch["labels"])
    (logits, _), updated = variables_lib.apply_in_training(
      self._model, variables, images, rngs={"dropout": rng_dropout}
    )
    return variables_lib.result(jnp.mean(self._loss(logits, labels)), {}, updated)

  @property
  def predict(self) -> Mapping[str, Predict]:
    """`predict`: `(logits, intermediates)`."""
    return {"predict": self._predict}

  def _predict(self, variables: Variables, batch: Batch) -> tuple[Float[Array, "batch classes"], Mapping[str, Any]]:
    if "image" not in batch:
      raise Refused(f"the preprocessing must leave 'image'; it leaves: {', '.join(sorted(batch))}")
    return self._model.apply(variables, batch["image"])


def _check(batch: Batch, num_classes: int) -> None:
  """Refuses batches that the model cannot take, before anything is computed; one without labels can be evaluated."""
  _require(batch, "image")
  if batch["image"].ndim != 4:
    raise UserError(f"config.input.pp must leave images [batch, height, width, channels], not {batch['image'].shape}")
  if "labels" in batch and batch["labels"].shape[1:] != (num_classes,):
    raise UserError(
      f"config.input.pp leaves labels of shape {batch['labels'].shape[1:]} an example; num_classes is {num_classes}"
    )


def _require(batch: Batch, key: str) -> None:
  if key not in batch:
    raise UserError(f"config.input.pp must leave {key!r}; it leaves: {', '.join(sorted(batch))}")
