"""Features of the train and test split of several datasets: what few-shot regression and nearest neighbours compare."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, Int

from core import sharding as sharding_lib
from core.data import input_config, pipeline
from core.errors import UserError, nearest
from core.evaluators import batches, features
from core.state import Params, Predict

_DATASET_KEYS = ("train", "test", "pp_train", "pp_eval")


@dataclasses.dataclass(frozen=True)
class Split:
  """Features of a split, by layer, and the labels."""

  layers: Mapping[str, Float[np.ndarray, "examples channels"]]
  labels: Int[np.ndarray, "examples"]


class TransferFeatures:
  """The datasets of an evaluator and how their features are made; all layers in one pass over a split.

  Args:
    predict: `(params, batch) -> (output, intermediates)`.
    sharding: how a batch lies on the devices.
    datasets: by name `dict(train={"name": ..., "split": ...}, test={...})`, with a `pp_train` or `pp_eval` of its own
      where it needs one; or, as in published configs, `(name in TFDS, train split, test split)`.
    pp_train: preprocessing of the train splits.
    pp_eval: preprocessing of the test splits.
    batch_size: examples a step over all devices.
    layers: a name or several, see `core.evaluators.features.layer_features`.
    pool: see there.
    label_key: where the labels are, one integer an example.
    cache: see `core.evaluators.batches.open_batches`.

  Raises:
    UserError: whatever is wrong with these arguments or the data.
  """

  def __init__(
    self,
    predict: Predict,
    *,
    sharding: NamedSharding,
    datasets: Mapping[str, Any],
    pp_train: str,
    pp_eval: str,
    batch_size: int,
    layers: str | Sequence[str] | None,
    pool: str | None,
    label_key: str,
    cache: bool | str | None,
  ):
    self.one_layer = layers is None or isinstance(layers, str)
    self.layers = (layers or "output",) if self.one_layer else tuple(layers)
    self._label_key = label_key
    fn = features.layer_features(predict, self.layers, pool=pool, keys=(label_key,))
    self._extractor = features.Extractor(fn, sharding)
    datasets = input_config.as_dict(datasets, "evals.datasets")
    if not datasets or not self.layers:
      raise UserError("evals: at least one of datasets and one representation_layer must be named")
    self._data = {
      name: [
        batches.open_batches(
          data, pp, batch_size=batch_size, sharding=sharding, cache=cache, key=f"datasets.{name}.{split}"
        )
        for split, (data, pp) in _read(name, dataset, pp_train, pp_eval).items()
      ]
      for name, dataset in datasets.items()
    }

  @property
  def names(self) -> list[str]:
    """Of the datasets, in the config's order."""
    return list(self._data)

  @property
  def first(self) -> pipeline.EvalInput:
    """The batches of the first dataset's train split."""
    return next(iter(self._data.values()))[0]

  def size(self, name: str) -> int:
    """Number of train examples."""
    return self._data[name][0].num_examples

  def check(self, params: Params) -> None:
    """Refuses, by the shapes of one batch of each split, what `extract` would.

    Raises:
      UserError: unreadable data, a layer that is not there or not a vector, labels other than one integer an example.
    """
    for name, splits in self._data.items():
      for split in splits:
        label = self._extractor.shapes(params, split)[self._label_key]
        if label.ndim != 1 or label.dtype.kind not in "iu":
          raise UserError(
            f"evals.datasets.{name}: {self._label_key!r} must be one integer an example, not {label.dtype.name} of "
            f"shape {label.shape[1:]}; leave the onehot out of the preprocessing"
          )

  def extract(self, name: str, params: Params, interrupted: Callable[[], bool]) -> tuple[Split, Split] | None:
    """Train and test split of a dataset; None if `interrupted()` became true on the way."""
    found = []
    for data in self._data[name]:
      rows = self._extractor.whole(params, data, interrupted)
      if rows is None:
        return None
      found.append(Split({layer: rows[layer] for layer in self.layers}, rows[self._label_key]))
    return tuple(found)

  def evaluate(
    self,
    params: Params,
    fn: Callable[[str, Split, Split, Callable[[], bool]], Any],
    interrupted: Callable[[], bool],
  ) -> dict[tuple[str, str], Any] | None:
    """`{(dataset, layer): fn(layer, train, test, interrupted)}`; None if it or the extraction of features was None."""
    found = {}
    for name in self.names:
      extracted = self.extract(name, params, interrupted)
      if extracted is None:
        return None
      for layer in self.layers:
        result = found[name, layer] = fn(layer, *extracted, interrupted)
        if result is None:
          return None
    return found

  def metric(self, layer: str, name: str) -> str:
    """A metric's name, which tells the layer where there are several."""
    return name if self.one_layer else f"{layer}/{name}"


def class_numbers(train: Split, test: Split) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "test"], int]:
  """Labels numbered from 0 by the classes of the train split, -1 for others, and how many classes there are."""
  classes, train_numbers = np.unique(train.labels, return_inverse=True)
  place = np.minimum(np.searchsorted(classes, test.labels), len(classes) - 1)
  return train_numbers, np.where(classes[place] == test.labels, place, -1), len(classes)


def split_rows(rows: np.ndarray, sharding: NamedSharding, *, fill: float = 0) -> jax.Array:
  """Rows that every process has, split evenly over the devices as a batch is, after padding with rows of `fill`."""
  parts = sharding_lib.batch_parts(sharding)
  return put(np.concatenate([rows, np.full((-len(rows) % parts, *rows.shape[1:]), fill, rows.dtype)]), sharding)


def put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """An array that every process has, each device given its part."""
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def numbers(option: str, value: Any, *, whole: bool = False) -> tuple[Any, ...]:
  """One number or several as a tuple, all of them above 0."""
  values = tuple(value) if isinstance(value, list | tuple) else (value,)
  kinds = int if whole else int | float
  if not values or not all(isinstance(v, kinds) and not isinstance(v, bool) and v > 0 for v in values):
    wanted = "whole numbers from 1 on" if whole else "numbers above 0"
    raise UserError(f"evals.{option} must be {wanted}, got {value!r}")
  return values


def _read(name: str, dataset: Any, pp_train: str, pp_eval: str) -> dict[str, tuple[dict[str, Any], str]]:
  """`{"train": (data, pp), "test": (data, pp)}`."""
  where = f"evals.datasets.{name}"
  if isinstance(dataset, list | tuple):
    if len(dataset) != 3 or not all(isinstance(each, str) for each in dataset):
      raise UserError(f"{where} must be (name, train split, test split), got {dataset!r}")
    tfds, train, test = dataset
    return {"train": (dict(name=tfds, split=train), pp_train), "test": (dict(name=tfds, split=test), pp_eval)}
  dataset = input_config.as_dict(dataset, f"evals.datasets.{name}")
  for key in dataset:
    if key not in _DATASET_KEYS:
      raise UserError(f"{where}.{key} is no key of a dataset{nearest(key, _DATASET_KEYS)}")
  for key in ("train", "test"):
    if key not in dataset:
      raise UserError(f"{where}.{key} is missing; a dataset needs dict(train=dict(name=..., split=...), test=...)")
  pps = {"train": dataset.get("pp_train", pp_train), "test": dataset.get("pp_eval", pp_eval)}
  return {key: (dataset[key], pps[key]) for key in ("train", "test")}
