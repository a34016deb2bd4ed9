"""Tasks of models whose variables are not all parameters, and a recipe for them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.state import Batch, Predict, Variables
from core.tasks import losses
from core.tasks import variables as variables_lib
from core.tasks.task import Loss, Task
from core.testing.batch_norm_resnet import BatchNormResNet
from core.testing.vector_quantizer import QuantizedAutoencoder


class Resnet(Task):
  """The classification of digits by a network with batch normalization."""

  def __init__(self):
    self._model = BatchNormResNet(num_classes=10, widths=(4,), momentum=0.9)

  def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
    return self._model.init(rng, batch["image"])

  def loss(self, variables: Variables, batch: Batch, rng: Key[Array, ""]) -> Loss:
    (logits, _), updated = variables_lib.apply_in_training(self._model, variables, batch["image"])
    return variables_lib.result(jnp.mean(losses.softmax_xent(logits, batch["labels"])), {}, updated)

  @property
  def predict(self) -> dict[str, Predict]:
    """`predict`: `(logits, intermediates)` by the running averages."""
    return {"predict": self._predict}

  def _predict(self, variables: Variables, batch: Batch) -> tuple[Float[Array, "batch classes"], dict[str, Any]]:
    return self._model.apply(variables, batch["image"])


class Autoencoder(Task):
  """The compression of images by a code book."""

  def __init__(self):
    self._model = QuantizedAutoencoder(patch=4, dim=4, codes=8, decay=0.8)

  def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
    return self._model.init(rng, batch["image"])

  def loss(self, variables: Variables, batch: Batch, rng: Key[Array, ""]) -> Loss:
    (found, out), updated = variables_lib.apply_in_training(self._model, variables, batch["image"])
    loss = jnp.mean((found - batch["image"]) ** 2) + 0.25 * out["commitment"]
    return variables_lib.result(loss, {}, updated)

  @property
  def predict(self) -> dict[str, Predict]:
    """`predict`: `(reconstructions, intermediates)`."""
    return {"predict": self._predict}

  def _predict(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    return self._model.apply(variables, batch["image"])


def recipe(**changes: Any) -> Recipe:
  """Returns a recipe of ten steps of plain gradient descent on the digits, with some of its keys changed."""
  pp = "value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
  data = dict(data=dict(name="digits", split="train[:64]"), batch_size=16, pp=pp)
  return parse(Recipe, dict(total_steps=10, input=data, optax_name="identity", lr=0.1) | changes)
