"""How well a student does as its teacher does: the classes that both prefer, their probabilities, their features."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from core.errors import UserError
from core.evaluators import batches, features
from core.state import Batch, Params, Predict, TrainState
from core.tasks import distances

_SIDES = {"student": "student", "teacher": "teacher"}  # Of each, the prediction unless a config names another.


class Evaluator:
  """`agree@1`, `agree@5`, `kl` and `cka` of two models, over a whole dataset, each example counted exactly once.

  `agree@k` is the share of the examples in which the class that the teacher prefers is among the k that the student
  prefers; `agree@5` is there where there are more than 5 classes. `kl` is the mean of KL(teacher || student) in nats.
  `cka`, in [0, 1], is linear centred kernel alignment of the representations (Kornblith et al. 2019, "Similarity of
  neural network representations revisited", section 3): |Y'X|^2 / (|X'X| |Y'Y|), in Frobenius norms, where X and Y have
  a row an example and columns of mean 0. It knows no rotation and no scale, and the widths may differ. Without a
  variation in one of them it is 0.

  The sums of squares are kept in double precision on the host, (width + width)^2 numbers, not the rows.

  Args:
    predict_student, predict_teacher: `(params, batch) -> (logits, intermediates)`.
    sharding: how a batch lies on the devices.
    data: the dataset, `{"name": ..., "split": ...}`.
    pp_fn: preprocessing that leaves the images; no labels are read.
    batch_size: examples a step over all devices; the last batch is padded.
    layer: the representation, a name among the intermediates of both, or `dict(student=..., teacher=...)`; of tokens or
      places the mean is taken. None for no `cka`.
    cache: see `core.evaluators.batches.open_batches`.
  """

  default_pred = _SIDES

  def __init__(
    self,
    predict_student: Predict,
    predict_teacher: Predict,
    *,
    sharding: NamedSharding,
    data: Mapping[str, Any],
    pp_fn: str,
    batch_size: int,
    layer: str | Mapping[str, str] | None = "pre_logits",
    cache: bool | str | None = None,
  ):
    layers = {side: layer for side in _SIDES} if layer is None or isinstance(layer, str) else dict(layer)
    if sorted(layers) != sorted(_SIDES):
      raise UserError(f"evals.layer must be a name, None, or a dict with student and teacher, got {layer!r}")
    self.data = batches.open_batches(data, pp_fn, batch_size=batch_size, sharding=sharding, cache=cache)
    predict = {"student": predict_student, "teacher": predict_teacher}
    self._extractor = features.Extractor(lambda params, batch: _rows(predict, layers, params, batch), sharding)

  def check(self, state: TrainState) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `state` may be shapes, too.

    Raises:
      UserError: the data cannot be read or do not fit a model, models of other classes, or no such layer.
    """
    self._extractor.shapes(state.params, self.data)

  def run(self, state: TrainState, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """The metrics of `state.params`; None if `interrupted()` became true on the way."""
    totals: dict[str, Any] = {}
    with contextlib.closing(self._extractor.pieces(state.params, self.data)) as pieces:
      for _, rows in pieces:
        sides = [rows.pop(side).astype(np.float64) for side in _SIDES if side in rows]
        sums = {name: values.sum(axis=0, dtype=np.float64) for name, values in rows.items()}
        if sides:
          both = np.concatenate(sides, axis=1)
          sums |= {"total": both.sum(axis=0), "products": both.T @ both}
        totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
        if interrupted():
          return None
    size = self.data.num_examples
    found = {name: float(total / size) for name, total in totals.items() if name not in ("total", "products")}
    if "total" in totals:
      found["cka"] = _cka(totals["products"] - np.outer(totals["total"], totals["total"]) / size, sides[0].shape[1])
    return found


def _rows(
  predict: Mapping[str, Predict], layers: Mapping[str, str | None], params: Params, batch: Batch
) -> dict[str, Array]:
  """For each example its agreements, its divergence, and both representations, `student` and `teacher`."""
  outputs = {side: features.named_outputs(predict[side], params, batch) for side in _SIDES}
  student, teacher = (outputs[side].get("output") for side in _SIDES)
  if student is None or teacher is None or student.ndim != 2 or student.shape != teacher.shape:
    shapes = " and ".join(str(getattr(each, "shape", None)) for each in (student, teacher))
    raise UserError(f"evals: agreement needs logits of the same classes [batch, classes] of both models, not {shapes}")
  student, teacher = (logits.astype(jnp.float32) for logits in (student, teacher))
  best = jnp.argmax(teacher, axis=-1)[:, None]
  among = lambda k: jnp.any(jax.lax.top_k(student, k)[1] == best, axis=-1)
  found = {"agree@1": among(1)} | ({"agree@5": among(5)} if student.shape[1] > 5 else {})
  found["kl"] = distances.kl(student, teacher)
  return found | {side: _representation(outputs[side], layer, side) for side, layer in layers.items() if layer}


def _representation(found: Mapping[str, Array], layer: str, side: str) -> Float[Array, "batch width"]:
  if layer not in found:
    raise UserError(f"evals.layer: the {side} has no layer {layer!r}{features.near_name(layer, found)}")
  x = found[layer]
  if x.ndim < 2:
    raise UserError(f"evals.layer: {layer!r} of the {side} has shape {x.shape}, which is not one vector an example")
  return x.astype(jnp.float32).mean(axis=tuple(range(1, x.ndim - 1)))


def _cka(covariances: Float[np.ndarray, "both both"], width: int) -> float:
  """Of the centred sums of products of both representations, of which the first has `width` columns."""
  norm = lambda rows, columns: np.linalg.norm(covariances[rows, columns])
  one, other = slice(None, width), slice(width, None)
  scale = norm(one, one) * norm(other, other)
  return float(norm(one, other) ** 2 / scale) if scale > 0 else 0.0
