"""Contrastive training with the classification of labelled images beside it, in the same batches by the same tower.

Tschannen et al. 2023 train so on image/alt-text pairs and the labelled images of JFT-4B, which are not public. Here any
component of the input can be the labelled one. A batch has exactly its share of them in every lane (`core.data.order`),
so the two kinds are told apart without a mask: each has an array of its own, and no tower reads the empty pictures that
stand in the place of a labelled image's text.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from core.data import order
from core.errors import UserError
from core.state import Batch, Predict, Variables
from core.tasks import in_parts, losses
from core.tasks import variables as variables_lib
from core.tasks.contrastive import Contrastive
from core.tasks.task import Loss
from projects.clippo import recipe as recipes

_HEAD = "head_cls"
_REPRESENTATION = "img/pre_logits"


class CoTraining(Contrastive):
  """`Contrastive`, and where `config.co_training` is given, a classifier on the tower's representation.

  The classifier's parameters are `head_cls/kernel`, zeros at first, and `head_cls/bias`; its prediction is "classify".

  Args:
    recipe: see `projects.clippo.recipe.CoTraining`.
  """

  Recipe = recipes.CoTraining

  def __init__(self, recipe: recipes.CoTraining):
    super().__init__(recipe)
    self._classifier = recipe.co_training
    self._share = _share_of_labelled(recipe) if self._classifier else 0.0

  def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
    variables = super().init(rng, batch)
    if not self._classifier:
      return variables
    if "label" not in batch:
      raise UserError(
        "config.co_training: the pp strings must leave 'label', by labelled(...) where there are labels and by paired "
        f"elsewhere; they leave: {', '.join(sorted(batch))}"
      )
    _, out = jax.eval_shape(super().predict["image"], variables, batch)
    width, classes = out[_REPRESENTATION].shape[-1], self._classifier.num_classes
    head = {"kernel": jnp.zeros((width, classes)), "bias": jnp.full((classes,), self._classifier.head_bias)}
    return {**variables, "params": {**variables["params"], _HEAD: head}}

  def loss_in_parts(self, variables: Variables, batch: Batch, rng: Key[Array, ""], parts: int) -> Loss:
    if not self._classifier:
      return super().loss_in_parts(variables, batch, rng, parts)
    pairs, labelled = self._divide(batch)
    counts = len(pairs["image"]), len(labelled["image"])
    if (both := math.gcd(*counts)) % parts:
      raise UserError(
        f"config.grad_accum_steps: a batch's {counts[0]} pairs and {counts[1]} labelled images cannot both be split "
        f"into {parts} equal parts; {both} and its divisors can"
      )
    contrastive, metrics, *updated = super().loss_in_parts(_without_head(variables), pairs, rng, parts)
    logits, _ = in_parts.embedded(self._embed_labelled, variables, labelled, rng, parts)
    targets = jax.nn.one_hot(labelled["label"], logits.shape[-1])
    classification = jnp.mean(losses.LOSSES[self._classifier.loss](logits, targets))
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labelled["label"])
    beside = {"contrastive_loss": contrastive, "classification_loss": classification, "accuracy": accuracy}
    loss = contrastive + self._classifier.weight * classification
    return variables_lib.result(loss, {**metrics, **beside}, *(updated or [{}]))

  def _embed_labelled(
    self, variables: Variables, batch: Batch, rng: Key[Array, ""]
  ) -> tuple[Float[Array, "batch classes"], Variables]:
    """Returns logits, which are computed as in evaluation, and no collections."""
    del rng
    return self._classify(variables, batch)[0], {}

  def _load_weights(self, variables: Variables) -> Variables:
    """Returns the tower's variables from a file; the classifier begins as it is."""
    loaded = super()._load_weights(_without_head(variables))
    head = {key: value for key, value in variables["params"].items() if key == _HEAD}
    return {**loaded, "params": {**loaded["params"], **head}}

  @property
  def predict(self) -> Mapping[str, Predict]:
    """Those of `Contrastive`, and with co-training `classify`, `(logits, intermediates)` of images."""
    return {**super().predict, **({"classify": self._classify} if self._classifier else {})}

  def _classify(self, variables: Variables, batch: Batch) -> tuple[Float[Array, "batch classes"], Mapping[str, Any]]:
    _, out = super().predict["image"](variables, batch)
    head = variables["params"][_HEAD]
    return out[_REPRESENTATION].astype(jnp.float32) @ head["kernel"] + head["bias"], out

  def _divide(self, batch: Batch) -> tuple[Batch, Batch]:
    """Returns the pairs and the labelled images of a batch, each in the order of the lanes, each on one device."""
    lanes = order.lanes_for(self._recipe.input.batch_size, jax.process_count())
    labelled_a_lane = round(lanes.width * self._share)
    is_labelled = (batch["label"] >= 0).reshape(lanes.count, lanes.width)
    places: Int[Array, "lanes width"] = jnp.argsort(is_labelled, axis=1, stable=True)
    split = lanes.width - labelled_a_lane

    def take(value: Array, where: Int[Array, "lanes some"]) -> Array:
      by_lane = value.reshape(lanes.count, lanes.width, *value.shape[1:])
      return jax.vmap(lambda of_lane, index: of_lane[index])(by_lane, where).reshape(-1, *value.shape[1:])

    pairs = {key: take(batch[key], places[:, :split]) for key in ("image", "labels")}
    return pairs, {key: take(batch[key], places[:, split:]) for key in ("image", "label")}


def _without_head(variables: Variables) -> Variables:
  return {**variables, "params": {key: value for key, value in variables["params"].items() if key != _HEAD}}


def _share_of_labelled(recipe: recipes.CoTraining) -> float:
  """Returns the part of a batch that is labelled.

  Raises:
    UserError: batches of this size do not all have the same part.
  """
  components, processes = recipe.input.components, jax.process_count()
  parts = order.Mixture.of(0, [component.weight for component in components]).parts
  if order.lanes_for(recipe.input.batch_size, processes).width % sum(parts):
    fitting = order.lanes_for(sum(parts) << 20, processes).count * sum(parts)
    raise UserError(
      f"config.input.batch_size: {recipe.input.batch_size} cannot be dealt out in the parts {parts} of input.data, as "
      f"co-training needs; {fitting} and its multiples can"
    )
  labelled = [component.name for component in components].index(recipe.co_training.labelled)
  return parts[labelled] / sum(parts)
