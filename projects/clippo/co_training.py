"""Contrastive training with the classification of labelled images beside it, in the same batches by the same tower.

Tschannen et al. 2023 train so on image/alt-text pairs and the labelled images of JFT-4B, which are not public. Here any
component of the input can be the labelled one. A batch has exactly its share of them in every lane (`core.data.order`),
so the two kinds are told apart without a mask: each has an array of its own, and no tower reads the empty pictures that
stand in the place of a labelled image's text.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from core.data import input_config, order
from core.errors import UserError, check_arguments, nearest
from core.state import Batch, Params, Predict
from core.tasks import losses
from core.tasks.contrastive import Contrastive

_HEAD = "head_cls"
_REPRESENTATION = "img/pre_logits"


class CoTraining(Contrastive):
  """`Contrastive`, and where `config.co_training` is given, a classifier on the tower's representation.

  Reads from the config besides: `co_training`, a dict of

    labelled: which component of the input holds labelled images, under `image` and `label`.
    num_classes: how many classes there are.
    loss: of `core.tasks.losses`, by default "sigmoid_xent".
    weight: what the classification loss is multiplied with, by default 1; the contrastive loss by 1.
    head_bias: the initial bias of each class, by default 0.

  The classifier's parameters are `head_cls/kernel`, zeros at first, and `head_cls/bias`; its prediction is "classify".
  """

  def __init__(self, config: ConfigDict):
    super().__init__(config)
    self._co_training = _read(config) if config.get("co_training") else None

  def init(self, rng: Key[Array, ""], batch: Batch) -> Mapping[str, Any]:
    variables = super().init(rng, batch)
    if not self._co_training:
      return variables
    if "label" not in batch:
      raise UserError(
        "config.co_training: the pp strings must leave 'label', by labelled(...) where there are labels and by paired "
        f"elsewhere; they leave: {', '.join(sorted(batch))}"
      )
    _, out = jax.eval_shape(super().predict["image"], variables["params"], batch)
    width, classes = out[_REPRESENTATION].shape[-1], self._co_training["num_classes"]
    head = {"kernel": jnp.zeros((width, classes)), "bias": jnp.full((classes,), float(self._co_training["head_bias"]))}
    return {"params": {**variables["params"], _HEAD: head}}

  def loss(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Mapping[str, jax.Array]]:
    if not self._co_training:
      return super().loss(params, batch, rng)
    pairs, labelled = self._divide(batch)
    contrastive, metrics = super().loss({k: v for k, v in params.items() if k != _HEAD}, pairs, rng)
    logits, _ = self._classify(params, labelled)
    targets = jax.nn.one_hot(labelled["label"], logits.shape[-1])
    classification = jnp.mean(losses.get(self._co_training["loss"])(logits, targets))
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labelled["label"])
    beside = {"contrastive_loss": contrastive, "classification_loss": classification, "accuracy": accuracy}
    return contrastive + self._co_training["weight"] * classification, {**metrics, **beside}

  def _load_weights(self, params: Params) -> Params:
    """The tower's from a file; the classifier begins as it is."""
    fresh = {key: value for key, value in params.items() if key == _HEAD}
    return {**super()._load_weights({key: value for key, value in params.items() if key != _HEAD}), **fresh}

  @property
  def predict(self) -> Mapping[str, Predict]:
    """Those of `Contrastive`, and with co-training `classify`, `(logits, intermediates)` of images."""
    return {**super().predict, **({"classify": self._classify} if self._co_training else {})}

  def _classify(self, params: Params, batch: Batch) -> tuple[Float[Array, "batch classes"], Mapping[str, Any]]:
    _, out = super().predict["image"](params, batch)
    return out[_REPRESENTATION].astype(jnp.float32) @ params[_HEAD]["kernel"] + params[_HEAD]["bias"], out

  def _divide(self, batch: Batch) -> tuple[Batch, Batch]:
    """The pairs and the labelled images of a batch, each in the order of the lanes, which lie on one device each."""
    lanes = order.lanes_for(self._config.input.batch_size, jax.process_count())
    if len(batch["label"]) != lanes.batch_size:
      raise UserError("config.grad_accum_steps: the parts of a batch are not mixed as co-training needs; take 1")
    labelled_a_lane = round(lanes.width * self._co_training["share"])
    is_labelled = (batch["label"] >= 0).reshape(lanes.count, lanes.width)
    places: Int[Array, "lanes width"] = jnp.argsort(is_labelled, axis=1, stable=True)
    split = lanes.width - labelled_a_lane

    def take(value: Array, where: Int[Array, "lanes some"]) -> Array:
      by_lane = value.reshape(lanes.count, lanes.width, *value.shape[1:])
      return jax.vmap(lambda of_lane, index: of_lane[index])(by_lane, where).reshape(-1, *value.shape[1:])

    pairs = {key: take(batch[key], places[:, :split]) for key in ("image", "labels")}
    return pairs, {key: take(batch[key], places[:, split:]) for key in ("image", "label")}


def _read(config: ConfigDict) -> dict[str, Any]:
  """The options, completed, with `share`: the part of a batch that is labelled."""
  options = input_config.as_dict(config.co_training, "config.co_training")
  check_arguments(_options, options, where="config.co_training", of="co-training")
  options = _options(**options)
  losses.get(options["loss"])
  components = input_config.read(config.input).components
  names = [component.key.rpartition(".")[2] for component in components]
  if options["labelled"] not in names or len(names) < 2:
    raise UserError(
      f"config.co_training.labelled: {options['labelled']!r} is no component of a mixture"
      f"{nearest(str(options['labelled']), names)}"
    )
  parts = order.Mixture.of(0, [component.weight for component in components]).parts
  lanes_of = lambda batch_size: order.lanes_for(batch_size, jax.process_count())
  if lanes_of(config.input.batch_size).width % sum(parts):
    fitting = lanes_of(sum(parts) << 20).count * sum(parts)
    raise UserError(
      f"config.input.batch_size: {config.input.batch_size} cannot be dealt out in the parts {parts} of input.data, as "
      f"co-training needs; {fitting} and its multiples can"
    )
  return {**options, "share": parts[names.index(options["labelled"])] / sum(parts)}


def _options(*, labelled: str, num_classes: int, loss: str = "sigmoid_xent", weight: float = 1.0, head_bias: float = 0):
  if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
    raise UserError(f"config.co_training.num_classes must be a whole number from 1 on, got {num_classes!r}")
  if not isinstance(weight, int | float) or weight <= 0:
    raise UserError(f"config.co_training.weight must be a number above 0, got {weight!r}")
  return dict(labelled=labelled, num_classes=num_classes, loss=loss, weight=weight, head_bias=head_bias)
