"""Accuracy, loss and calibration of a classifier over a whole dataset, each example counted exactly once."""

import csv
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from core import files
from core.errors import UserError, first_few
from core.evaluators import batches
from core.state import Batch, Predict, TrainState
from core.tasks import losses

_BINS = 15


class Evaluator:
  """Top-1 and top-5 accuracy (`prec@1`, `prec@5`), mean loss (`loss`) and expected calibration error (`ece`).

  An example may have several labels, a multi-hot vector: the prediction is right if its best class is any of them, as
  in Beyer et al. 2020 ("Are we done with ImageNet?"). Examples with no label at all do not count. `prec@5` is there
  where there are more than 5 classes.

  `ece` is in [0, 1] (Guo et al. 2017, eq. 3): the mean over examples of |accuracy - confidence|, each averaged over one
  of 15 equally wide bins of confidence. Confidence is the probability that the loss gives the predicted class: its
  softmax, or for `sigmoid_xent` its sigmoid.

  Args:
    predict: `(params, batch) -> (logits, ...)`.
    sharding: how a batch lies on the devices.
    data: the dataset, `{"name": ..., "split": ...}`.
    pp_fn: preprocessing that leaves `image` and the labels.
    batch_size: examples a step over all devices; the last batch is padded.
    loss_name: a function of `core.tasks.losses`.
    label_key: where the one-hot or multi-hot labels are.
    cache: see `core.evaluators.batches.open_batches`.
    classes: indices of the classes that the dataset knows; all others are no choice. For a dataset that holds a part of
      the model's classes, as ImageNet-R does. Its labels may be one column a class of the model, of which these are
      taken, or one column an index here. None: all classes.
    per_class: write how many examples each class has and the share that is predicted right: the name of a `.csv` or
      `.json` file, or True for `per_class.csv`.
    output_dir: where that file goes.
  """

  def __init__(
    self,
    predict: Predict,
    *,
    sharding: NamedSharding,
    data: Mapping[str, Any],
    pp_fn: str,
    batch_size: int,
    loss_name: str = "softmax_xent",
    label_key: str = "labels",
    cache: bool | str | None = None,
    classes: Sequence[int] | None = None,
    per_class: bool | str = False,
    output_dir: Path | None = None,
  ):
    self._classes = None if classes is None else _checked_classes(classes)
    self._table = _table_path(per_class, output_dir)
    chosen = None if self._classes is None else tuple(self._classes.tolist())
    fn = _make_sums(predict, loss_name, label_key, chosen, self._table is not None)
    data = batches.open_batches(data, pp_fn, batch_size=batch_size, sharding=sharding, cache=cache)
    self.data = data
    self._totals = batches.Totals(fn, data, sharding)

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `state` may be shapes, too.

    Raises:
      UserError: the data cannot be read, or do not fit the model or the loss.
    """
    self._totals.check(state.params)

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """The metrics of `state.params`; None if `interrupted()` became true on the way.

    Raises:
      UserError: no example has a label.
    """
    totals = self._totals.run(state.params, interrupted)
    if totals is None:
      return None
    count = totals["count"]
    if count == 0:
      raise UserError("evals: no example has a label")
    if self._table is not None and jax.process_index() == 0:
      _write_table(self._table, self._classes, totals["class_count"], totals["class_correct"])
    means = {name: float(totals[name] / count) for name in ("prec@1", "prec@5", "loss") if name in totals}
    gap = np.abs(totals["bin_correct"] - totals["bin_confidence"])
    return {**means, "ece": float(gap.sum() / count)}


@functools.lru_cache(maxsize=64)  # Evaluators that differ in their data alone are one program, compiled once.
def _make_sums(
  predict: Predict, loss_name: str, label_key: str, classes: tuple[int, ...] | None, by_class: bool
) -> Callable[[Any, Batch], dict[str, Array]]:
  loss_fn, sigmoid = losses.get(loss_name), loss_name == "sigmoid_xent"

  def sums(params: Any, batch: Batch) -> dict[str, Array]:
    """Over the examples of one batch that count: how many are right, their loss, and the same by bin and by class."""
    batches.require(batch, "image", label_key)
    logits, *_ = predict(params, batch)
    logits, labels = _fit(logits, batch[label_key], None if classes is None else np.asarray(classes))
    counts = (batch["_mask"] > 0) & (jnp.max(labels, axis=-1) > 0)

    def total(values: Array) -> Array:
      # Selected rather than multiplied: a padded example may give NaN.
      here = counts.reshape(-1, *[1] * (values.ndim - 1))
      return jnp.sum(jnp.where(here, values, jnp.zeros_like(values)), axis=0)

    best = jnp.argmax(logits, axis=-1)
    correct = _any_label(labels, best[:, None])
    confidence = jnp.max(jax.nn.sigmoid(logits) if sigmoid else jax.nn.softmax(logits), axis=-1)
    in_bin = _bin(confidence)[:, None] == jnp.arange(_BINS)
    found = {
      "count": jnp.sum(counts),
      "prec@1": total(correct.astype(jnp.int32)),
      "loss": total(loss_fn(logits, labels).astype(jnp.float32)),
      "bin_correct": total((in_bin & correct[:, None]).astype(jnp.int32)),
      "bin_confidence": total(jnp.where(in_bin, confidence[:, None], 0.0)),
    }
    if logits.shape[-1] > 5:
      found["prec@5"] = total(_any_label(labels, jax.lax.top_k(logits, 5)[1]).astype(jnp.int32))
    if by_class:
      found["class_count"] = total((labels > 0).astype(jnp.int32))
      found["class_correct"] = total(((labels > 0) & correct[:, None]).astype(jnp.int32))
    return found

  return sums


def _fit(
  logits: Float[Array, "batch outputs"], labels: Float[Array, "batch columns"], classes: np.ndarray | None
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
  """Logits, in float32, and labels of the same classes."""
  logits, outputs = logits.astype(jnp.float32), logits.shape[-1]
  if classes is not None:
    if classes.max() >= outputs:
      raise UserError(f"evals.classes names {classes.max()}; the model has {outputs} logits, numbered from 0")
    logits = logits[:, classes]
    if labels.shape[1:] != logits.shape[1:] and labels.shape[1:] == (outputs,):
      labels = labels[:, classes]
  if labels.shape != logits.shape:
    chosen = "" if classes is None else f", of which classes names {len(classes)}"
    raise UserError(
      f"evals: pp_fn leaves labels of shape {labels.shape[1:]}, the model has {(outputs,)} logits{chosen}"
    )
  return logits, labels


def _any_label(labels: Float[Array, "batch classes"], chosen: Int[Array, "batch k"]) -> Bool[Array, "batch"]:
  """Whether any of the chosen classes is a label."""
  return jnp.any(jnp.take_along_axis(labels, chosen, axis=-1) > 0, axis=-1)


def _bin(confidence: Float[Array, "batch"]) -> Int[Array, "batch"]:
  """The number of the bin ((m - 1) / 15, m / 15] that a confidence lies in, from 0."""
  return jnp.clip(jnp.ceil(confidence * _BINS).astype(jnp.int32) - 1, 0, _BINS - 1)


def _checked_classes(classes: Sequence[int]) -> np.ndarray:
  array = np.asarray(classes)
  if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu" or array.min() < 0:
    raise UserError(f"evals.classes must be a list of class indices from 0 on, got {str(classes)[:60]}")
  found, times = np.unique(array, return_counts=True)
  if (times > 1).any():
    raise UserError(f"evals.classes names more than once: {first_few([str(each) for each in found[times > 1]])}")
  return array


def _table_path(per_class: bool | str, output_dir: Path | None) -> Path | None:
  if not per_class:
    return None
  name = "per_class.csv" if per_class is True else str(per_class)
  if Path(name).name != name or not name.endswith((".csv", ".json")):
    raise UserError(f"evals.per_class must be True or the name of a .csv or .json file, got {per_class!r}")
  if output_dir is None:
    raise UserError("evals.per_class writes a file, and this program has no folder for those of evaluators")
  return output_dir / name


def _write_table(
  path: Path, classes: np.ndarray | None, count: Float[np.ndarray, "classes"], correct: Float[np.ndarray, "classes"]
) -> None:
  """Class, examples that have it as a label, and the share of these that is right (empty where there are none)."""
  numbers = range(len(count)) if classes is None else classes
  rows = [
    {"class": int(number), "count": int(n), "accuracy": float(right / n) if n else None}
    for number, n, right in zip(numbers, count, correct)
  ]
  text = io.StringIO()
  if path.suffix == ".json":
    json.dump(rows, text, indent=1)
  else:
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    file.write(text.getvalue().encode())
