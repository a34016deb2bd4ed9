"""Features of the train and test splits of datasets, which few-shot regression and nearest neighbours compare."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, Int, Shaped

from core import sharding as sharding_lib
from core.data import pipeline
from core.errors import UserError
from core.evaluators import batches, features
from core.recipe.evaluators_base import as_tuple
from core.recipe.evaluators_transfer import Transfer, TransferDataset
from core.recipe.parse import parse
from core.recipe.sources import Source
from core.state import Predict, Variables


@dataclasses.dataclass(frozen=True)
class Split:
  """Features of a split, by layer, and the labels."""

  layers: Mapping[str, Float[np.ndarray, "examples channels"]]
  labels: Int[np.ndarray, "examples"]


class TransferFeatures:
  """The datasets of an evaluator and how their features are made; all layers in one pass over a split.

  Args:
    options: see there.
    predict: `(variables, batch) -> (output, intermediates)`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.

  Raises:
    UserError: the data cannot be read, or the preprocessing does not fit them.
  """

  def __init__(self, options: Transfer, predict: Predict, *, sharding: NamedSharding, where: str):
    self._where, self._label_key = where, options.label_key
    layers = options.representation_layer
    self._has_one_layer = layers is None or isinstance(layers, str)
    self.layers = as_tuple("output" if layers is None else layers)
    fn = features.layer_features(predict, self.layers, pool=options.pool, keys=(options.label_key,))
    self._extractor = features.Extractor(fn, sharding, where)
    common = batches.common(options, sharding, where)
    self._data = {name: _open(options, name, common) for name in options.datasets}

  @property
  def names(self) -> list[str]:
    """The names of the datasets, in the config's order."""
    return list(self._data)

  @property
  def first(self) -> pipeline.EvalInput:
    """The batches of the first dataset's train split."""
    return next(iter(self._data.values()))[0]

  def size(self, name: str) -> int:
    """Returns the number of train examples of a dataset."""
    return self._data[name][0].num_examples

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch of each split, what `extract` would.

    Raises:
      UserError: unreadable data, a layer that is not there or not a vector, labels other than one integer an example.
    """
    for name, splits in self._data.items():
      for split in splits:
        label = self._extractor.shapes(variables, split)[self._label_key]
        if label.ndim != 1 or label.dtype.kind not in "iu":
          raise UserError(
            f"{self._where}.datasets.{name}: {self._label_key!r} must be one integer an example, not "
            f"{label.dtype.name} of shape {label.shape[1:]}; leave the onehot out of the preprocessing"
          )

  def extract(self, name: str, variables: Variables, interrupted: Callable[[], bool]) -> tuple[Split, Split] | None:
    """Returns the train and test split of a dataset; None if `interrupted()` became true on the way."""
    found = []
    for data in self._data[name]:
      rows = self._extractor.whole(variables, data, interrupted)
      if rows is None:
        return None
      found.append(Split({layer: rows[layer] for layer in self.layers}, rows[self._label_key]))
    return tuple(found)

  def evaluate(
    self,
    variables: Variables,
    fn: Callable[[str, Split, Split, Callable[[], bool]], Any],
    interrupted: Callable[[], bool],
  ) -> dict[tuple[str, str], Any] | None:
    """Returns `{(dataset, layer): fn(layer, train, test, interrupted)}`; None if `interrupted()` became true.

    Args:
      variables: of the model.
      fn: compares the features of a layer; None where it was interrupted.
      interrupted: asked after every batch.
    """
    found = {}
    for name in self.names:
      extracted = self.extract(name, variables, interrupted)
      if extracted is None:
        return None
      for layer in self.layers:
        result = found[name, layer] = fn(layer, *extracted, interrupted)
        if result is None:
          return None
    return found

  def metric(self, layer: str, name: str) -> str:
    """Returns a metric's name, which begins with the layer where there are several."""
    return name if self._has_one_layer else f"{layer}/{name}"


def class_numbers(train: Split, test: Split) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "test"], int]:
  """Returns the labels of both, numbered by the classes of the train split, -1 for others, and how many these are."""
  classes, train_numbers = np.unique(train.labels, return_inverse=True)
  place = np.minimum(np.searchsorted(classes, test.labels), len(classes) - 1)
  return train_numbers, np.where(classes[place] == test.labels, place, -1), len(classes)


def split_rows(
  rows: Shaped[np.ndarray, "rows *rest"], sharding: NamedSharding, *, fill: float = 0
) -> Shaped[jax.Array, "padded *rest"]:
  """Returns rows that every process has, padded by rows of `fill`, split over the devices as a batch is."""
  parts = sharding_lib.batch_parts(sharding)
  return put(np.concatenate([rows, np.full((-len(rows) % parts, *rows.shape[1:]), fill, rows.dtype)]), sharding)


def put(array: Shaped[np.ndarray, "*shape"], sharding: jax.sharding.Sharding) -> Shaped[jax.Array, "*shape"]:
  """Returns an array that every process has, of which each device gets its part."""
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _open(options: Transfer, name: str, common: Mapping[str, Any]) -> tuple[pipeline.EvalInput, pipeline.EvalInput]:
  """Returns the batches of the train and of the test split of a dataset."""
  dataset, key = options.datasets[name], f"datasets.{name}"
  if isinstance(dataset, tuple):
    tfds, train, test = dataset
    path = f"{common['where']}.{key}"
    splits = {"train": dict(name=tfds, split=train), "test": dict(name=tfds, split=test)}
    dataset = TransferDataset(**{split: parse(Source, each, path) for split, each in splits.items()})
  found = []
  for split, pp_key in (("train", "pp_train"), ("test", "pp_eval")):
    own = getattr(dataset, pp_key)
    pp_fn, pp_path = (getattr(options, pp_key), pp_key) if own is None else (own, f"{key}.{pp_key}")
    found.append(batches.open_batches(getattr(dataset, split), pp_fn, key=f"{key}.{split}", pp_key=pp_path, **common))
  return tuple(found)
