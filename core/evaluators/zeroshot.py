"""Zero-shot classification: an image belongs to the class whose prompts, as texts, it is nearest to.

Radford et al. 2021 (CLIP), section 3.1.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from core import sharding as sharding_lib
from core.data import input_config, source
from core.errors import UserError, check_arguments, nearest
from core.evaluators import batches, prompts, text_embeddings, transfer_features
from core.state import Batch, Params, Predict, TrainState

_IMAGENET = dict(class_names="imagenet", templates="imagenet_best")

# Data sets by name, as TFDS has them, and how their classes are named.
DATASETS: dict[str, dict[str, Any]] = {
  "imagenet2012": dict(data=dict(name="imagenet2012", split="validation"), **_IMAGENET),
  "imagenet_v2": dict(data=dict(name="imagenet_v2", split="test"), **_IMAGENET),
  # Beyer et al. 2020: any number of labels an image; those without one do not count.
  "imagenet2012_real": dict(
    data=dict(name="imagenet2012_real", split="validation"), label_key="real_label", several_labels=True, **_IMAGENET
  ),
  "imagenet_sketch": dict(data=dict(name="imagenet_sketch", split="test"), **_IMAGENET),
  "cifar10": dict(data=dict(name="cifar10", split="test"), class_names="cifar10", templates="cifar"),
  "cifar100": dict(data=dict(name="cifar100", split="test"), class_names="cifar100", templates="cifar"),
  "oxford_iiit_pet": dict(
    data=dict(name="oxford_iiit_pet", split="test"), class_names="oxford_iiit_pet", templates="oxford_iiit_pet"
  ),
  "oxford_flowers102": dict(
    data=dict(name="oxford_flowers102", split="test"), class_names="oxford_flowers102", templates="oxford_flowers102"
  ),
  "food101": dict(data=dict(name="food101", split="validation"), class_names="food101", templates="food101"),
  "dtd": dict(data=dict(name="dtd", split="test"), class_names="dtd", templates="dtd"),
  "cars196": dict(data=dict(name="cars196", split="test"), class_names="cars196", templates="cars196"),
  "mnist": dict(data=dict(name="mnist", split="test"), class_names="digits", templates="digits"),
  "svhn_cropped": dict(data=dict(name="svhn_cropped", split="test"), class_names="digits", templates="digits"),
  "digits": dict(data=dict(name="digits", split="test"), class_names="digits", templates="digits"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
  """A data set to classify.

  Attributes:
    data: where it is, `{"name": ..., "split": ...}`.
    class_names: see `core.evaluators.prompts.read_classes`; None: the source's own names of its classes.
    templates: see `core.evaluators.prompts.read_templates`.
    label_key: where the labels are.
    several_labels: an example has any number of labels; the prediction is right if it is one of them.
    pp_img: preprocessing of its images, where it needs one of its own.
    pp_txt: the same for texts.
  """

  data: Mapping[str, Any]
  class_names: Any = None
  templates: Any = None
  label_key: str = "label"
  several_labels: bool = False
  pp_img: str | None = None
  pp_txt: str | None = None


class Evaluator:
  """`DATASET/accuracy`, and `DATASET/accuracy@5` where there are more than 5 classes.

  A class's embedding is the normalized mean of those of its prompts, each normalized. The texts are embedded once an
  evaluation, those that data sets share but once. Of classes that score alike, the first is predicted.

  Args:
    predict_image: `(params, batch) -> (embeddings [batch, dim], ...)`, from the batch's `image`.
    predict_text: the same from the batch's `labels`.
    sharding: how a batch lies on the devices.
    pp_img: preprocessing from the data to the `image` of the model; the labels are seen to.
    pp_txt: preprocessing from `text` (also there as `texts`) to `labels`: tokenization, or rendering to an image.
    batch_size: examples, and texts, a step over all devices; the last batch is padded.
    dataset_names: of DATASETS.
    datasets: others by a name of yours, the attributes of `Dataset` in a dict each; or what is to be changed of one of
      DATASETS under its name. What they leave out is that of DATASETS or of the options here.
    class_names: for all data sets, in place of their own; see `core.evaluators.prompts`.
    templates: for all data sets, in place of their own.
    canonicalize: prompts lower-case and without punctuation, as SigLIP was trained.
    cache: see `core.evaluators.batches.open_batches`.
  """

  default_pred = text_embeddings.SIDES

  def __init__(
    self,
    predict_image: Predict,
    predict_text: Predict,
    *,
    sharding: NamedSharding,
    pp_img: str,
    pp_txt: str,
    batch_size: int,
    dataset_names: Sequence[str] = (),
    datasets: Mapping[str, Any] | None = None,
    class_names: Any = None,
    templates: Any = None,
    canonicalize: bool = True,
    cache: bool | str | None = None,
  ):
    every = dict(class_names=class_names, templates=templates)
    every = {key: value for key, value in every.items() if value is not None}
    sets = _read(dataset_names, datasets, every)
    self._sharding = sharding
    self._texts = text_embeddings.Embedder(predict_text, sharding, "text")
    self._images = text_embeddings.Embedder(predict_image, sharding, "image")
    asked = {name: _prompts(name, each, pp_txt, canonicalize) for name, each in sets.items()}
    size = text_embeddings.text_batch_size(max(len(each.texts) for each in asked.values()), batch_size, sharding)
    options = dict(sharding=sharding, cache=cache)
    # Data sets that ask the same share the batches and the embeddings.
    self._asked: dict[_Prompts, Any] = {}
    self._sets: dict[str, _Opened] = {}
    for name, each in sets.items():
      ask = asked[name]
      if ask not in self._asked:
        self._asked[ask] = text_embeddings.open_texts(ask.texts, ask.pp_txt, batch_size=size, **options)
      data = batches.open_batches(
        each.data,
        _labelled(each, pp_img, ask.num_classes),
        batch_size=batch_size,
        key=f"datasets.{name}.data",
        **options,
      )
      totals = batches.Totals(self._sums(name, each.label_key), data, sharding)
      self._sets[name] = _Opened(data, totals, ask, each.label_key)
    first = next(iter(self._sets.values()))
    self.data = text_embeddings.Joined(first.data, self._asked[first.ask])

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch of each data set, what the first evaluation would.

    Raises:
      UserError: the data cannot be read or do not fit the model; labels that have no class name, among the first.
    """
    for name, each in self._sets.items():
      size, dim = each.ask.num_classes, self._texts.check(state.params, self._asked[each.ask])
      each.totals.check((state.params, jax.ShapeDtypeStruct((size, dim), jnp.float32)))
      first = next(iter(each.data))
      labels = first[each.label_key]
      if labels.ndim == 1:
        _check_labels(name, int((~_known(labels, size) & (first["_mask"] > 0)).sum()), size)

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """The metrics of `state.params`; None if `interrupted()` became true on the way.

    Raises:
      UserError: labels that have no class name, or no example with a label.
    """
    weights, found = {}, {}
    for ask, data in self._asked.items():
      embeddings = self._texts.run(state.params, data, interrupted)
      if embeddings is None:
        return None
      of_classes = prompts.ensemble(embeddings, np.asarray(ask.class_of))
      weights[ask] = transfer_features.put(of_classes, sharding_lib.replicated(self._sharding.mesh))
    for name, each in self._sets.items():
      sums = each.totals.run((state.params, weights[each.ask]), interrupted)
      if sums is None:
        return None
      _check_labels(name, int(sums["unknown"]), each.ask.num_classes)
      if not sums["count"]:
        raise UserError(f"evals.datasets.{name}: no example has a label")
      found |= {f"{name}/{key}": float(sums[key] / sums["count"]) for key in ("accuracy", "accuracy@5") if key in sums}
    return found

  def _sums(self, name: str, label_key: str) -> Callable[[tuple[Params, Array], Batch], dict[str, Array]]:
    def sums(params: tuple[Params, Float[Array, "classes dim"]], batch: Batch) -> dict[str, Array]:
      """Over the examples of one batch that count: how many are right."""
      batches.require(batch, label_key)
      weights, labels = params[1], batch[label_key]
      z = self._images.of_batch(params[0], batch)
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
      right = lambda k: jnp.sum(counts & jnp.take_along_axis(targets, jax.lax.top_k(scores, k)[1], axis=1).any(axis=1))
      more = {"accuracy@5": right(5)} if len(weights) > 5 else {}
      return {"count": jnp.sum(counts), "unknown": jnp.sum(real & ~known), "accuracy": right(1), **more}

    return sums


@dataclasses.dataclass(frozen=True)
class _Prompts:
  """What is asked of the text side for a data set."""

  texts: tuple[str, ...]
  class_of: tuple[int, ...]
  num_classes: int
  pp_txt: str


@dataclasses.dataclass(frozen=True)
class _Opened:
  """A data set with its batches."""

  data: Any
  totals: batches.Totals
  ask: _Prompts
  label_key: str


def _read(names: Sequence[str], datasets: Mapping[str, Any] | None, every: Mapping[str, Any]) -> dict[str, Dataset]:
  """The data sets by name, in the order of `names`, then of `datasets`."""
  names = [names] if isinstance(names, str) else list(names)
  given = input_config.as_dict(datasets or {}, "evals.datasets")
  for name in names:
    if name not in DATASETS and name not in given:
      raise UserError(f"evals.dataset_names: no data set {name!r}{nearest(name, DATASETS)}")
  found = {}
  for name in dict.fromkeys([*names, *given]):
    own = input_config.as_dict(given.get(name, {}), f"evals.datasets.{name}")
    options = {**DATASETS.get(name, {}), **every, **own}
    check_arguments(Dataset, options, where=f"evals.datasets.{name}", of="a data set")
    found[name] = Dataset(**options)
  if not found:
    raise UserError(f"evals: zeroshot needs dataset_names (of {', '.join(DATASETS)}) or datasets")
  return found


def _prompts(name: str, dataset: Dataset, pp_txt: str, canonicalize: bool) -> _Prompts:
  where = f"evals.datasets.{name}"
  given = dataset.class_names
  if given is None:
    opened = source.open_source(input_config.as_dict(dataset.data, f"{where}.data"), f"{where}.data")
    given = [each.replace("_", " ") for each in getattr(opened, "classes", ())]
    if not given:
      raise UserError(
        f"{where} has no class_names; give a list, a file, or one of {', '.join(prompts.known_classes())}"
      )
  if not dataset.templates:
    raise UserError(
      f"{where} has class names and no templates; give templates=['a photo of a {{}}.'], or 'name' for the names alone"
    )
  classes = prompts.read_classes(given, f"{where}.class_names")
  templates = prompts.read_templates(dataset.templates, f"{where}.templates")
  written, class_of = prompts.write(classes, templates, canonicalize=canonicalize)
  return _Prompts(tuple(written), tuple(class_of.tolist()), len(classes), dataset.pp_txt or pp_txt)


def _labelled(dataset: Dataset, pp_img: str, num_classes: int) -> str:
  """The preprocessing of a data set's images and labels."""
  pp = dataset.pp_img if dataset.pp_img is not None else pp_img
  if dataset.several_labels:
    pp = "|".join(filter(None, [pp, f"onehot({num_classes},key={dataset.label_key!r})"]))
  return text_embeddings.with_keep(pp, "image", dataset.label_key)


def _known(labels: Any, num_classes: int) -> Any:
  return (labels >= 0) & (labels < num_classes)


def _check_labels(name: str, unknown: int, num_classes: int) -> None:
  if unknown:
    raise UserError(
      f"evals.datasets.{name}: {unknown} examples have labels outside of 0 to {num_classes - 1}; there are "
      f"{num_classes} class names"
    )


def _check_fit(name: str, z: Float[Array, "batch dim"], weights: Float[Array, "classes dim"], labels: Array) -> None:
  if z.shape[1] != weights.shape[1]:
    raise UserError(f"evals: embeddings of images have size {z.shape[1]}, those of texts {weights.shape[1]}")
  if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] != len(weights)):
    raise UserError(
      f"evals.datasets.{name}: labels of shape {labels.shape[1:]} an example; it must be one integer, or a column for "
      f"each of the {len(weights)} classes"
    )
