"""The task of LiT, SigLIP and CLIPPO: images and the texts that go with them, embedded into one space."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from core import sharding, trees
from core.errors import UserError, naming
from core.models import registry as models
from core.models import two_towers
from core.pp import vocabulary
from core.recipe import tasks as recipes
from core.recipe.types import Refused
from core.state import Batch, Params, Predict, Variables
from core.tasks import contrastive_losses, in_parts
from core.tasks import variables as variables_lib
from core.tasks.task import Loss, Task

_KEYS = {"image": "image", "text": "labels"}
_LOGGED = ("t", "t/parameter", "b", "img/norm", "txt/norm")

Outputs = Mapping[str, Any]
Embeddings = Float[Array, "batch dim"]


class Contrastive(Task):
  """A contrastive loss of the embeddings that a model of images and texts gives, "two_towers" or "one_tower".

  Batches hold images under `image`, and texts under `labels`: ids of tokens, or for one tower images of the texts.

  What the schedule freezes, `[("img/.*", None), (".*", dict(...))]`, is locked (LiT, Zhai et al. 2022): nothing is
  differentiated by it and nothing kept for that. A tower of which all is frozen runs as in evaluation.

  Outputs of a locked image tower can be computed beforehand: `zimg` [batch, dim] in place of `image`. The model then
  has no image tower, unless `init_shapes` tells for which inputs it is made (with weights by `model_init`, for
  evaluators and for who uses the model later).

  Args:
    recipe: see `core.recipe.tasks.Contrastive`. The loss compares the examples of all devices, for which it reads
      `mesh` and `sharding_rules`; `schedule` says what is locked.
  """

  Recipe = recipes.Contrastive

  def __init__(self, recipe: recipes.Contrastive):
    self._recipe = recipe
    self._family = models.get(recipe.model_name)
    self._model = self._family.make(None, recipe.model)
    # The parameters behind each side, which is one and the same for one tower.
    self._towers = {"image": "img", "text": "txt" if hasattr(self._model, "txt") else "img"}
    self._rules = recipe.schedule if isinstance(recipe.schedule, tuple) else ()
    self._init_shapes = dict(zip(_KEYS, recipe.init_shapes or ()))
    self.load = naming("config.model_init")(self._load_weights) if recipe.model_init else None

  def init(self, rng: Key[Array, ""], batch: Batch) -> Variables:
    image, text = (self._input(batch, side) for side in _KEYS)
    with naming("config.model"):
      variables = self._model.init(rng, image, text)
    params = variables["params"]
    if "zimg" in batch and "img" in params and not self._is_locked(params, "image"):
      raise UserError(
        "config.schedule: batches hold outputs of the image tower, zimg, in place of images, so it must be frozen: "
        "[('img/.*', None), ...]"
      )
    return variables

  def check(self, batch: Batch) -> None:
    """Refuses tokens that the text tower does not have.

    Raises:
      UserError: the tokenizer of a pp string makes more kinds of them than the tower embeds, or the batch holds such.
    """
    known = getattr(getattr(self._recipe.model, "text", None), "vocab_size", None)
    if known is None or "labels" not in batch:
      return
    for component in self._recipe.input.components:
      size = vocabulary.vocab_sizes(component.pp).get("labels", 0)
      if size > known:
        raise UserError(
          f"{component.pp_key}: its tokenizer has {size:,} pieces, and config.model.text.vocab_size is "
          f"{known:,}: take the tokenizer that the weights were trained with, or a model of its size"
        )
    if (largest := int(np.max(batch["labels"]))) >= known:
      raise UserError(f"config.model.text.vocab_size is {known:,}, and the first batch holds the token {largest:,}")

  def loss(self, variables: Variables, batch: Batch, rng: Key[Array, ""]) -> Loss:
    return self.loss_in_parts(variables, batch, rng, 1)

  def loss_in_parts(self, variables: Variables, batch: Batch, rng: Key[Array, ""], parts: int) -> Loss:
    """Returns the loss of the whole batch, of which one part after the other is embedded; `loss` is in one part."""
    variables = {**variables, "params": trees.map_with_names(self._without_gradient, variables["params"])}
    out, updated = in_parts.embedded(self._embed_pairs, variables, batch, rng, parts)
    # Without an input the model computes its scalars alone.
    out = {**out, **self._model.apply(variables)[2]}
    if self._recipe.loss == "softmax":
      loss, metrics = contrastive_losses.softmax_contrastive(out["zimg"], out["ztxt"], out["t"], **self._over_devices())
    else:
      bias = out.get("b", jnp.zeros(()))
      loss, metrics = contrastive_losses.sigmoid_contrastive(
        out["zimg"], out["ztxt"], out["t"], bias, **self._over_devices()
      )
    # The model's own scalars, and the mean lengths of the embeddings before they were normalized.
    logged = {key: jax.lax.stop_gradient(jnp.mean(out[key])) for key in _LOGGED if key in out}
    return variables_lib.result(loss, {**metrics, **logged}, updated)

  def _embed_pairs(self, variables: Variables, batch: Batch, rng: Key[Array, ""]) -> tuple[Outputs, Variables]:
    """Returns the embeddings of both sides, with their lengths before they were normalized, and updated collections."""
    rng_image, rng_text = jax.random.split(rng)
    zimg, out_image, of_image = self._embed(variables, batch, "image", rng_image)
    # One tower for both sides goes on with what its first pass made of its collections.
    ztxt, out_text, of_text = self._embed({**variables, **of_image}, batch, "text", rng_text)
    norms = {key: out[key] for out, key in ((out_image, "img/norm"), (out_text, "txt/norm")) if key in out}
    return {"zimg": zimg, "ztxt": ztxt, **norms}, {**of_image, **of_text}

  @property
  def predict(self) -> Mapping[str, Predict]:
    """`image` and `text`: `(embeddings, intermediates)` of one side; `contrastive`: `(zimg, ztxt, intermediates)`.

    `predict` is as `contrastive`, of the sides that a batch has: the embeddings of another are None.
    """
    return {
      "predict": self._predict_given,
      "image": self._predict_image,
      "text": self._predict_text,
      "contrastive": self._predict_both,
    }

  def _predict_image(self, variables: Variables, batch: Batch) -> tuple[Embeddings, Outputs]:
    return self._embed(variables, batch, "image")[:2]

  def _predict_text(self, variables: Variables, batch: Batch) -> tuple[Embeddings, Outputs]:
    return self._embed(variables, batch, "text")[:2]

  def _predict_both(self, variables: Variables, batch: Batch) -> tuple[Embeddings, Embeddings, Outputs]:
    zimg, out_image = self._predict_image(variables, batch)
    ztxt, out_text = self._predict_text(variables, batch)
    return zimg, ztxt, {**out_image, **out_text}

  def _predict_given(self, variables: Variables, batch: Batch) -> tuple[Embeddings | None, Embeddings | None, Outputs]:
    zimg, out_image = self._predict_image(variables, batch) if _has(batch, "image") else (None, {})
    ztxt, out_text = self._predict_text(variables, batch) if _has(batch, "text") else (None, {})
    return zimg, ztxt, {**out_image, **out_text}

  def _embed(
    self, variables: Variables, batch: Batch, side: str, rng: Key[Array, ""] | None = None
  ) -> tuple[Embeddings, Outputs, Variables]:
    """Embeds one side; with `rng` as in training, unless the tower is locked.

    Returns:
      Embeddings, intermediates, and the collections that a training pass updated.

    Raises:
      UserError: in training, the batch lacks what the side takes.
      Refused: in evaluation, likewise.
    """
    if lack := _lack(batch, side):
      raise Refused(f"the preprocessing {lack}") if rng is None else UserError(f"config.input.pp {lack}")
    if side == "image" and "zimg" in batch:
      return _unit_length(batch["zimg"]), {}, {}
    if self._towers[side] not in variables["params"]:
      raise UserError(f"config.init_shapes: the model has no {side} tower; they say for which inputs one is made")
    inputs, updated = {side: batch[_KEYS[side]]}, {}
    if rng is None or self._is_locked(variables["params"], side):
      zimg, ztxt, out = self._model.apply(variables, **inputs, train=False, rngs=None)
    else:
      (zimg, ztxt, out), updated = variables_lib.apply_in_training(
        self._model, variables, **inputs, rngs={"dropout": rng}
      )
    return (ztxt if zimg is None else zimg), out, updated

  def _over_devices(self) -> dict[str, Any]:
    """Returns how the loss is computed: the mesh and its axes over which the loop splits a batch, and the form."""
    batch = sharding.held_batch()
    if batch is None:
      batch = sharding.batch_sharding(sharding.make_mesh(self._recipe.mesh), self._recipe.sharding_rules)
    return dict(mesh=batch.mesh, axis=sharding.batch_axes(batch), form=self._recipe.loss_form)

  def _freezes(self, name: str) -> bool:
    rule = trees.first_match(name, [regex for regex, _ in self._rules])
    return rule is not None and self._rules[rule][1] is None

  def _without_gradient(self, name: str, leaf: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(leaf) if self._freezes(name) else leaf

  def _is_locked(self, params: Params, side: str) -> bool:
    tower = self._towers[side]
    return all(self._freezes(f"{tower}/{name}") for name, _ in trees.flatten_with_names(params[tower]))

  def _input(self, batch: Batch, side: str) -> jax.Array | None:
    """Returns what a side of the model is initialized by; None if it has no tower."""
    if _KEYS[side] in batch:
      return batch[_KEYS[side]]
    if shape := self._init_shapes.get(side):
      return jnp.zeros(shape, jnp.int32 if len(shape) == 2 else jnp.float32)
    if lack := _lack(batch, side):
      raise UserError(f"config.input.pp {lack}")
    return None

  def _load_weights(self, variables: Variables) -> Variables:
    recipe, how = self._recipe, vars(self._recipe.model_load)
    files = recipe.model_init.by_part() if isinstance(recipe.model_init, recipes.TowerFiles) else recipe.model_init
    params = self._family.load(variables["params"], files, recipe.model, **how)
    collections = variables_lib.collections_of(variables)
    if isinstance(files, str):
      return {
        "params": params,
        **variables_lib.load_collections(recipe.model_name, collections, files, how["dont_load"]),
      }
    return {"params": params, **self._load_collections_of_parts(collections, files)}

  def _load_collections_of_parts(self, collections: Variables, files: Mapping[str, str]) -> Variables:
    """Returns the collections of the towers, each from its own file if it has one."""
    loaded = {name: dict(tree) for name, tree in collections.items()}
    for side, tower in (("image", "img"), ("text", "txt")):
      own, file = variables_lib.part(collections, tower), files.get(side) or files.get(tower)
      if own and file:
        how = getattr(self._recipe.model_load, f"{tower}_load_kw")
        family = getattr(self._recipe.model, f"{side}_model")
        for name, tree in variables_lib.load_collections(family, own, file, how.dont_load).items():
          loaded[name][tower] = tree
    return loaded


def _has(batch: Batch, side: str) -> bool:
  return _KEYS[side] in batch or (side == "image" and "zimg" in batch)


def _lack(batch: Batch, side: str) -> str | None:
  """Returns what a batch must have for a side of the model; None if it has it."""
  if _has(batch, side):
    return None
  or_embeddings = " (or their embeddings, 'zimg')" if side == "image" else ""
  return f"must leave {side}s under {_KEYS[side]!r}{or_embeddings}; it leaves: {', '.join(sorted(batch))}"


def _unit_length(z: Embeddings) -> Embeddings:
  if z.ndim != 2:
    raise UserError(f"the embeddings of images, zimg, must be one vector an example, not of shape {z.shape[1:]}")
  return two_towers.unit_length(z)[0]
