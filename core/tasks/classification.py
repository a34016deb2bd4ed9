"""The task that most of these projects have: an image in, class probabilities out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core.errors import UserError
from core.models import registry as models
from core.state import Batch, Params, Predict
from core.tasks import losses
from core.tasks.mixup import mixup
from core.tasks.task import Task


class Classification(Task):
  """Softmax or sigmoid cross-entropy, with mixup where the config says so, of any model of `core.models.registry`.

  Reads from the config: `model_name`, `model`, `num_classes`, `loss`, `init_head_bias`, `mixup`, and `model_init` with
  `model_load`, the weights to start from.
  """

  def __init__(self, config: ConfigDict):
    self._config = config
    self._family = models.get(config.model_name)
    self._model = self._family.Model(num_classes=config.num_classes, **config.get("model", {}))
    self._loss = losses.get(config.get("loss", "softmax_xent"))
    self.load = self._load_weights if config.get("model_init") else None

  def init(self, rng: Key[Array, ""], batch: Batch) -> Mapping[str, Any]:
    _check(batch, self._config.num_classes)
    params = self._model.init(rng, batch["image"])["params"]
    if bias := self._config.get("init_head_bias"):
      # Sigmoid losses over many classes begin where each class is as rare as it is.
      params["head"]["bias"] = jnp.full_like(params["head"]["bias"], bias)
    return {"params": params}

  def _load_weights(self, params: Params) -> Params:
    config = self._config
    return self._family.load(params, config.model_init, config.get("model"), **config.get("model_load", {}))

  def loss(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Mapping[str, jax.Array]]:
    _require(batch, "labels")
    rng_mixup, rng_dropout = jax.random.split(rng)
    images, labels = mixup(rng_mixup, self._config.get("mixup", {}).get("p", 0.0), batch["image"], batch["labels"])
    logits, _ = self._model.apply({"params": params}, images, train=True, rngs={"dropout": rng_dropout})
    return jnp.mean(self._loss(logits, labels)), {}

  @property
  def predict(self) -> Mapping[str, Predict]:
    return {"predict": lambda params, batch: self._model.apply({"params": params}, batch["image"])}


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
