"""The task of LiT, SigLIP and CLIPPO: images and the texts that go with them, embedded into one space."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from core import sharding, trees
from core.data import input_config
from core.errors import UserError, check_arguments, nearest
from core.models import one_tower, two_towers
from core.models import registry as models
from core.optim import masks
from core.pp import vocabulary
from core.state import Batch, Params, Predict
from core.tasks import contrastive_losses
from core.tasks.task import Task

_LOSSES = ("softmax", "sigmoid")
_KEYS = {"image": "image", "text": "labels"}
_LOGGED = ("t", "t/parameter", "b", "img/norm", "txt/norm")

Outputs = Mapping[str, Any]


class Contrastive(Task):
  """A contrastive loss of the embeddings that a model of images and texts gives, "two_towers" or "one_tower".

  Reads from the config: `model_name` and `model`; `loss`, "softmax" or "sigmoid", and `loss_form`, "plain", "chunked"
  or "ring", see `core.tasks.contrastive_losses`; `mesh` and `sharding_rules`, for the loss compares the examples of
  all devices; `schedule`, `init_shapes`; and `model_init` with `model_load`, the weights to start from.

  Batches hold images under `image`, and texts under `labels`: ids of tokens, or for one tower images of the texts.

  What the schedule freezes, `[("img/.*", None), (".*", dict(...))]`, is locked (LiT, Zhai et al. 2022): nothing is
  differentiated by it and nothing kept for that. A tower of which all is frozen runs as in evaluation.

  Outputs of a locked image tower can be computed beforehand: `zimg` [batch, dim] in place of `image`. The model then
  has no image tower, unless `init_shapes`, `[(1, 224, 224, 3), (1, 16)]` for images and texts, tells for which inputs
  it is made (with weights by `model_init`, for evaluators and for who uses the model later).
  """

  def __init__(self, config: ConfigDict):
    self._config = config
    self._options = input_config.as_dict(config.get("model", {}), "config.model")
    self._family = models.get(config.model_name)
    self._model = _make_model(config.model_name, self._family, self._options)
    # The parameters behind each side, which is one and the same for one tower.
    self._towers = {"image": "img", "text": "txt" if hasattr(self._model, "txt") else "img"}
    self._loss, self._form = config.get("loss", "softmax"), config.get("loss_form", "plain")
    if self._loss not in _LOSSES:
      raise UserError(f"config.loss: no contrastive loss {self._loss!r}{nearest(self._loss, _LOSSES)}")
    contrastive_losses.check_form(self._form)
    if (config.get("sam") or {}).get("perturbation") == "per_device":
      raise UserError(
        "config.sam.perturbation: 'per_device' does not go with a contrastive loss, which compares the "
        "examples of all devices; use 'global'"
      )
    schedule = config.get("schedule")
    self._rules = masks.checked(schedule, "config.schedule") if isinstance(schedule, list | tuple) else []
    self._init_shapes = _checked_shapes(config.get("init_shapes"))
    self.load = self._load_weights if config.get("model_init") else None

  def init(self, rng: Key[Array, ""], batch: Batch) -> Mapping[str, Any]:
    image, text = (self._input(batch, side) for side in _KEYS)
    params = self._model.init(rng, image, text)["params"]
    if "zimg" in batch and "img" in params and not self._is_locked(params, "image"):
      raise UserError(
        "config.schedule: batches hold outputs of the image tower, zimg, in place of images, so it must be frozen: "
        "[('img/.*', None), ...]"
      )
    return {"params": params}

  def check(self, batch: Batch) -> None:
    """Refuses tokens that the text tower does not have.

    Raises:
      UserError: the tokenizer of a pp string makes more kinds of them than the tower embeds, or the batch holds such.
    """
    known = getattr(getattr(self._model, "txt", None), "vocab_size", None)
    if known is None or "labels" not in batch:
      return
    for part in input_config.read(self._config.input).components:
      size = vocabulary.vocab_sizes(part.pp).get("labels", 0)
      if size > known:
        raise UserError(
          f"config.{part.key}.pp: its tokenizer has {size:,} pieces, and config.model.text.vocab_size is {known:,}: "
          "take the tokenizer that the weights were trained with, or a model of its size"
        )
    if (largest := int(np.max(batch["labels"]))) >= known:
      raise UserError(f"config.model.text.vocab_size is {known:,}, and the first batch holds the token {largest:,}")

  def loss(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Mapping[str, jax.Array]]:
    locked = lambda name, leaf: jax.lax.stop_gradient(leaf) if self._freezes(name) else leaf
    params = trees.map_with_names(locked, params)
    rng_image, rng_text = jax.random.split(rng)
    zimg, out_image = self._embed(params, batch, "image", rng_image)
    ztxt, out_text = self._embed(params, batch, "text", rng_text)
    out = {**out_image, **out_text}
    if self._loss == "softmax":
      loss, metrics = contrastive_losses.softmax_contrastive(zimg, ztxt, out["t"], **self._over_devices())
    else:
      bias = out.get("b", jnp.zeros(()))
      loss, metrics = contrastive_losses.sigmoid_contrastive(zimg, ztxt, out["t"], bias, **self._over_devices())
    # The model's own scalars, and the mean lengths of the embeddings before they were normalized.
    logged = {key: jax.lax.stop_gradient(jnp.mean(out[key])) for key in _LOGGED if key in out}
    return loss, {**metrics, **logged}

  @property
  def predict(self) -> Mapping[str, Predict]:
    """`image` and `text`: `(embeddings, intermediates)` of one side; `contrastive`: `(zimg, ztxt, intermediates)`.

    `predict` is as `contrastive`, of the sides that a batch has: the embeddings of another are None.
    """

    def contrastive(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, Outputs]:
      (zimg, out_image), (ztxt, out_text) = (self._embed(params, batch, side) for side in _KEYS)
      return zimg, ztxt, {**out_image, **out_text}

    def given(params: Params, batch: Batch) -> tuple[jax.Array | None, jax.Array | None, Outputs]:
      of_side = lambda side: self._embed(params, batch, side) if _has(batch, side) else (None, {})
      (zimg, out_image), (ztxt, out_text) = map(of_side, _KEYS)
      return zimg, ztxt, {**out_image, **out_text}

    one = lambda side: lambda params, batch: self._embed(params, batch, side)
    return {"predict": given, "image": one("image"), "text": one("text"), "contrastive": contrastive}

  def _embed(
    self, params: Params, batch: Batch, side: str, rng: Key[Array, ""] | None = None
  ) -> tuple[Float[Array, "batch dim"], Outputs]:
    """Embeddings and intermediates of one side; with `rng` as in training, unless the tower is locked."""
    _require(batch, side)
    if side == "image" and "zimg" in batch:
      return _unit_length(batch["zimg"]), {}
    if self._towers[side] not in params:
      raise UserError(f"the model has no {side} tower; config.init_shapes says for which inputs one is made")
    train = rng is not None and not self._is_locked(params, side)
    inputs = {side: batch[_KEYS[side]]}
    rngs = {"dropout": rng} if train else None
    zimg, ztxt, out = self._model.apply({"params": params}, **inputs, train=train, rngs=rngs)
    return (ztxt if zimg is None else zimg), out

  def _over_devices(self) -> dict[str, Any]:
    """How the loss is computed: the mesh and its axes over which the loop splits a batch, and the form."""
    batch = sharding.held_batch()
    if batch is None:
      mesh = sharding.make_mesh(self._config.get("mesh", sharding.AUTO))
      batch = sharding.batch_sharding(mesh, self._config.get("sharding_rules", ()))
    return dict(mesh=batch.mesh, axis=sharding.batch_axes(batch), form=self._form)

  def _freezes(self, name: str) -> bool:
    rule = trees.first_match(name, [regex for regex, _ in self._rules])
    return rule is not None and self._rules[rule][1] is None

  def _is_locked(self, params: Params, side: str) -> bool:
    tower = self._towers[side]
    return all(self._freezes(f"{tower}/{name}") for name, _ in trees.flatten_with_names(params[tower]))

  def _input(self, batch: Batch, side: str) -> jax.Array | None:
    """What a side of the model is initialized by; None if it has no tower."""
    if _KEYS[side] in batch:
      return batch[_KEYS[side]]
    if shape := self._init_shapes.get(side):
      return jnp.zeros(shape, jnp.int32 if len(shape) == 2 else jnp.float32)
    _require(batch, side)
    return None

  def _load_weights(self, params: Params) -> Params:
    init = self._config.model_init
    init = init if isinstance(init, str) else input_config.as_dict(init, "config.model_init")
    return self._family.load(params, init, self._options, **self._config.get("model_load", {}))


def _make_model(name: str, family: Any, options: Mapping[str, Any]) -> Any:
  if family not in (two_towers, one_tower):
    raise UserError(f"config.model_name: {name!r} is no model of images and texts; two_towers and one_tower are")
  check_arguments(family.Model, options, where="config.model", of=f"the model {name}")
  return family.Model(**options)


def _checked_shapes(shapes: Any) -> dict[str, tuple[int, ...]]:
  """Of a batch by side; none where the config says nothing."""
  if shapes is None:
    return {}
  is_shape = lambda shape: isinstance(shape, list | tuple) and all(isinstance(n, int) and n > 0 for n in shape)
  if len(shapes) != 2 or not all(map(is_shape, shapes)):
    raise UserError(
      f"config.init_shapes must be the shapes of images and texts, [(1, 224, 224, 3), (1, 16)] say, got {shapes!r}"
    )
  return {side: tuple(shape) for side, shape in zip(_KEYS, shapes)}


def _has(batch: Batch, side: str) -> bool:
  return _KEYS[side] in batch or (side == "image" and "zimg" in batch)


def _require(batch: Batch, side: str) -> None:
  if not _has(batch, side):
    or_embeddings = " (or their embeddings, 'zimg')" if side == "image" else ""
    leaves = ", ".join(sorted(batch))
    raise UserError(f"the pp string must leave {side}s under {_KEYS[side]!r}{or_embeddings}; it leaves: {leaves}")


def _unit_length(z: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
  if z.ndim != 2:
    raise UserError(f"the embeddings of images, zimg, must be one vector an example, not of shape {z.shape[1:]}")
  return two_towers.unit_length(z)[0]
