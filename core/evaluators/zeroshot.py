"""Zero-shot classification: an image is of the class to whose prompts it is nearest.

Radford et al. 2021 (CLIP), section 3.1.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from core import sharding as sharding_lib
from core.data import source
from core.errors import UserError
from core.evaluators import batches, prompts, text_embeddings, transfer_features
from core.recipe.evaluators import Zeroshot
from core.recipe.evaluators_image_text import ZeroshotDataset
from core.recipe.types import Refused
from core.state import Batch, Predict, Variables


class Evaluator:
  """`DATASET/accuracy`, and `DATASET/accuracy@5` for more than 5 classes.

  A class's embedding is the normalized mean of those of its prompts, each normalized. The texts are embedded once an
  evaluation, also those that several data sets share. Of classes that score alike, the first is predicted.

  Args:
    options: see there.
    predict_image: `(variables, batch) -> (embeddings [batch, dim], ...)`, from the batch's `image`.
    predict_text: the same from the batch's `labels`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.

  Raises:
    UserError: a data set cannot be read, or has no class names or templates.
  """

  def __init__(
    self, options: Zeroshot, predict_image: Predict, predict_text: Predict, *, sharding: NamedSharding, where: str
  ):
    self._sharding, self._where = sharding, where
    self._texts = text_embeddings.Embedder(predict_text, sharding, "text", where)
    self._images = text_embeddings.Embedder(predict_image, sharding, "image", where)
    sets = options.sets()
    asked = {name: read_prompts(each, options, name, where) for name, each in sets.items()}
    most = max(len(each.texts) for each in asked.values())
    size = text_embeddings.text_batch_size(most, options.batch_size, sharding)
    common = batches.common(options, sharding, where)
    # Data sets that ask the same share the batches and the embeddings.
    self._asked: dict[Prompts, Any] = {}
    self._sets: dict[str, _Opened] = {}
    for name, each in sets.items():
      ask = asked[name]
      if ask not in self._asked:
        pp_key = _pp_key(options, name, "pp_txt")
        of_texts = common | dict(batch_size=size, pp_key=pp_key)
        self._asked[ask] = text_embeddings.open_texts(ask.texts, ask.pp_txt, **of_texts)
      pp_key = _pp_key(options, name, "pp_img")
      pp_img = _labelled(each, ask.num_classes)
      data = batches.open_batches(each.data, pp_img, key=f"datasets.{name}.data", pp_key=pp_key, **common)
      totals = batches.Totals(functools.partial(self._sums, name, each.label_key), data, sharding, where)
      self._sets[name] = _Opened(data, totals, ask, each.label_key)
    first = next(iter(self._sets.values()))
    self.data = text_embeddings.ImagesWithTexts(first.data, self._asked[first.ask])

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch of each data set, what the first evaluation would.

    Raises:
      UserError: the data cannot be read or do not fit the model; labels that have no class name, among the first.
    """
    for name, each in self._sets.items():
      size, dim = each.ask.num_classes, self._texts.check(variables, self._asked[each.ask])
      each.totals.check((variables, jax.ShapeDtypeStruct((size, dim), jnp.float32)))
      first = next(iter(each.data))
      labels = first[each.label_key]
      if labels.ndim == 1:
        self._check_labels(name, int((~_known(labels, size) & (first["_mask"] > 0)).sum()), size)

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics; None if `interrupted()` became true on the way.

    Raises:
      UserError: labels that have no class name, or no example with a label.
    """
    weights, found = {}, {}
    for ask, data in self._asked.items():
      embeddings = self._texts.run(variables, data, interrupted)
      if embeddings is None:
        return None
      of_classes = prompts.ensemble(embeddings, np.asarray(ask.class_of))
      weights[ask] = transfer_features.put(of_classes, sharding_lib.replicated(self._sharding.mesh))
    for name, each in self._sets.items():
      sums = each.totals.run((variables, weights[each.ask]), interrupted)
      if sums is None:
        return None
      self._check_labels(name, int(sums["unknown"]), each.ask.num_classes)
      if not sums["count"]:
        raise UserError(f"{self._where}.datasets.{name}: no example has a label")
      found |= {f"{name}/{key}": float(sums[key] / sums["count"]) for key in ("accuracy", "accuracy@5") if key in sums}
    return found

  def _sums(
    self, name: str, label_key: str, inputs: tuple[Variables, Float[Array, "classes dim"]], batch: Batch
  ) -> dict[str, Array]:
    """Returns, over the examples of one batch that count, how many are right."""
    batches.require(batch, label_key)
    (variables, weights), labels = inputs, batch[label_key]
    z = self._images.of_batch(variables, batch)
    _check_fit(name, z, weights, labels)
    with jax.default_matmul_precision("highest"):
      scores = z @ weights.T
    real = batch["_mask"] > 0
    if labels.ndim == 1:
      known = _known(labels, len(weights))
      targets = jax.nn.one_hot(labels, len(weights), dtype=bool)
    else:
      targets = labels > 0
      known = jnp.ones_like(real)
    counts = real & targets.any(axis=-1)
    found = {"count": jnp.sum(counts), "unknown": jnp.sum(real & ~known)}
    found["accuracy"] = jnp.sum(counts & _is_among(scores, targets, 1))
    if len(weights) > 5:
      found["accuracy@5"] = jnp.sum(counts & _is_among(scores, targets, 5))
    return found

  def _check_labels(self, name: str, unknown: int, num_classes: int) -> None:
    if unknown:
      raise UserError(
        f"{self._where}.datasets.{name}: {unknown} examples have labels outside of 0 to {num_classes - 1}; there are "
        f"{num_classes} class names"
      )


@dataclasses.dataclass(frozen=True)
class Prompts:
  """What is asked of the text side for a data set.

  Attributes:
    texts: the prompts.
    class_of: the class of each.
    num_classes: how many classes there are.
    pp_txt: the preprocessing of the texts.
  """

  texts: tuple[str, ...]
  class_of: tuple[int, ...]
  num_classes: int
  pp_txt: str


@dataclasses.dataclass(frozen=True)
class _Opened:
  """A data set with its batches."""

  data: Any
  totals: batches.Totals
  ask: Prompts
  label_key: str


def read_prompts(dataset: ZeroshotDataset, options: Zeroshot, name: str, where: str) -> Prompts:
  """Returns what is asked for a data set, of `options.sets()`.

  Args:
    dataset: one of them.
    options: of the evaluator.
    name: of the data set.
    where: the path of `options` in the config, for messages.

  Raises:
    UserError: there are no class names or templates, or they cannot be read.
  """
  own = options.datasets.get(name, ZeroshotDataset())
  path = {
    key: f"{where}.{key}" if getattr(own, key) is None and getattr(options, key) else f"{where}.datasets.{name}.{key}"
    for key in ("class_names", "templates")
  }
  given = dataset.class_names
  if given is None:
    opened = source.open_source(dataset.data, f"{where}.datasets.{name}.data")
    given = tuple(each.replace("_", " ") for each in getattr(opened, "classes", ()))
    if not given:
      known = ", ".join(prompts.known_classes())
      raise UserError(f"{path['class_names']} is missing; it is a list, a file, or one of {known}")
  if dataset.templates is None:
    example = "['a photo of a {}.']"
    raise UserError(f"{path['templates']} is missing; it is a list like {example}, or 'name' for names alone")
  classes = prompts.read_classes(given, path["class_names"])
  if options.first_class_name_only:
    classes = tuple(names[:1] for names in classes)
  templates = prompts.read_templates(dataset.templates, path["templates"])
  written, class_of = prompts.write(classes, templates, canonicalize=options.canonicalize)
  return Prompts(tuple(written), tuple(class_of.tolist()), len(classes), dataset.pp_txt)


def _pp_key(options: Zeroshot, name: str, key: str) -> str:
  """Returns where the preprocessing of a data set stands among the options."""
  own = getattr(options.datasets.get(name), key, None)
  return key if own is None else f"datasets.{name}.{key}"


def _labelled(dataset: ZeroshotDataset, num_classes: int) -> str:
  """Returns the preprocessing of a data set's images and labels."""
  pp = dataset.pp_img
  if dataset.several_labels:
    pp = "|".join(filter(None, [pp, f"onehot({num_classes},key={dataset.label_key!r})"]))
  return text_embeddings.with_keep(pp, "image", dataset.label_key)


def _known(labels: Int[Any, "batch"], num_classes: int) -> Bool[Any, "batch"]:
  """Tells which labels have a class name."""
  return (labels >= 0) & (labels < num_classes)


def _is_among(
  scores: Float[Array, "batch classes"], targets: Bool[Array, "batch classes"], k: int
) -> Bool[Array, "batch"]:
  """Tells whether one of the k classes with the highest scores is a label."""
  return jnp.take_along_axis(targets, jax.lax.top_k(scores, k)[1], axis=1).any(axis=1)


def _check_fit(
  name: str, z: Float[Array, "batch dim"], weights: Float[Array, "classes dim"], labels: Int[Array, "batch *classes"]
) -> None:
  if z.shape[1] != weights.shape[1]:
    raise Refused(f"gives images embeddings of size {z.shape[1]}, texts of size {weights.shape[1]}", key="pred")
  if labels.ndim == 1 and not jnp.issubdtype(labels.dtype, jnp.integer):
    raise Refused(f"has labels of {labels.dtype.name}; a label is a whole number", key=f"datasets.{name}")
  if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] != len(weights)):
    raise Refused(
      f"has labels of shape {labels.shape[1:]} an example; it must be one integer, or a column for each of the "
      f"{len(weights)} classes",
      key=f"datasets.{name}",
    )
