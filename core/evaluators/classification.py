"""Accuracy, loss and calibration of a classifier over a whole dataset; each example counts exactly once."""

import csv
import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, Shaped

from core import files
from core.errors import UserError
from core.evaluators import batches
from core.recipe.evaluators import Classification
from core.recipe.types import Refused
from core.state import Batch, Predict, Variables
from core.tasks import losses

_BINS = 15


class Evaluator:
  """Top-1 and top-5 accuracy (`prec@1`, `prec@5`), mean loss (`loss`) and expected calibration error (`ece`).

  An example may have several labels, a multi-hot vector. Its prediction is right if its best class is one of them
  (Beyer et al. 2020, "Are we done with ImageNet?"). Examples without a label do not count. `prec@5` is reported for
  more than 5 classes.

  `ece` is in [0, 1] (Guo et al. 2017, eq. 3): the mean over examples of |accuracy - confidence|, each averaged over one
  of 15 equally wide bins of confidence. Confidence is the probability that the loss gives the predicted class: its
  softmax, or for `sigmoid_xent` its sigmoid.

  Args:
    options: see there.
    predict: `(variables, batch) -> (logits, ...)`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.
    output_dir: where the table of classes goes.
  """

  def __init__(
    self,
    options: Classification,
    predict: Predict,
    *,
    sharding: NamedSharding,
    where: str,
    output_dir: Path | None = None,
  ):
    self._where, self._classes = where, options.classes
    self._table = _table_path(options.per_class, output_dir, where)
    fn = _make_sums(predict, options.loss_name, options.label_key, options.classes, self._table is not None)
    self.data = batches.open_dataset(options, sharding, where)
    self._totals = batches.Totals(fn, self.data, sharding, where)

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `variables` may be shapes, too.

    Raises:
      UserError: the data cannot be read, or do not fit the model or the loss.
    """
    self._totals.check(variables)

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics; None if `interrupted()` became true on the way.

    Raises:
      UserError: no example has a label.
    """
    totals = self._totals.run(variables, interrupted)
    if totals is None:
      return None
    count = totals["count"]
    if count == 0:
      raise UserError(f"{self._where}.data: no example has a label")
    if self._table is not None and jax.process_index() == 0:
      _write_table(self._table, self._classes, totals["class_count"], totals["class_correct"])
    means = {name: float(totals[name] / count) for name in ("prec@1", "prec@5", "loss") if name in totals}
    gap = np.abs(totals["bin_correct"] - totals["bin_confidence"])
    return {**means, "ece": float(gap.sum() / count)}


@functools.lru_cache(maxsize=64)  # Evaluators that differ in their data alone are one program, compiled once.
def _make_sums(
  predict: Predict, loss_name: str, label_key: str, classes: tuple[int, ...] | None, by_class: bool
) -> Callable[[Variables, Batch], dict[str, Shaped[Array, "..."]]]:
  loss_fn, sigmoid = losses.LOSSES[loss_name], loss_name == "sigmoid_xent"

  def sums(variables: Variables, batch: Batch) -> dict[str, Shaped[Array, "..."]]:
    """Returns how many examples of a batch count and are right, their loss, and the same by bin and by class."""
    batches.require(batch, "image", label_key)
    logits, *_ = predict(variables, batch)
    logits, labels = _fit(logits, batch[label_key], None if classes is None else np.asarray(classes))
    counts = (batch["_mask"] > 0) & (jnp.max(labels, axis=-1) > 0)

    def total(values: Shaped[Array, "batch ..."]) -> Shaped[Array, "..."]:
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
  """Returns logits, in float32, and labels of the same classes.

  Raises:
    Refused: there is no telling which labels belong to which logits.
  """
  logits, outputs = logits.astype(jnp.float32), logits.shape[-1]
  if classes is not None:
    if classes.max() >= outputs:
      raise Refused(f"names {classes.max()}; the model has {outputs} logits, numbered from 0", key="classes")
    logits = logits[:, classes]
    if labels.shape[1:] != logits.shape[1:] and labels.shape[1:] == (outputs,):
      labels = labels[:, classes]
  if labels.shape != logits.shape:
    chosen = "" if classes is None else f", of which classes names {len(classes)}"
    raise Refused(f"leaves labels of shape {labels.shape[1:]}, the model has {(outputs,)} logits{chosen}", key="pp_fn")
  return logits, labels


def _any_label(labels: Float[Array, "batch classes"], chosen: Int[Array, "batch k"]) -> Bool[Array, "batch"]:
  """Tells whether any of the chosen classes is a label."""
  return jnp.any(jnp.take_along_axis(labels, chosen, axis=-1) > 0, axis=-1)


def _bin(confidence: Float[Array, "batch"]) -> Int[Array, "batch"]:
  """Returns the number, from 0, of the bin ((m - 1) / 15, m / 15] that a confidence lies in."""
  return jnp.clip(jnp.ceil(confidence * _BINS).astype(jnp.int32) - 1, 0, _BINS - 1)


def _table_path(per_class: bool | str, output_dir: Path | None, where: str) -> Path | None:
  if not per_class:
    return None
  if output_dir is None:
    raise UserError(f"{where}.per_class writes a file, and this program has no folder for those of evaluators")
  return output_dir / ("per_class.csv" if per_class is True else per_class)


def _write_table(
  path: Path, classes: Sequence[int] | None, count: Float[np.ndarray, "classes"], correct: Float[np.ndarray, "classes"]
) -> None:
  """Writes of each class how many examples have it as a label, and what share of these is right; empty of none."""
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
