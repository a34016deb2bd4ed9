"""How well a student does as its teacher does: the classes that both prefer, their probabilities, their features."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from core.evaluators import batches, features
from core.recipe import distances as recipes
from core.recipe.evaluators import Agreement
from core.recipe.types import Refused
from core.state import Batch, Predict, Variables
from core.tasks import distances

_SIDES = ("student", "teacher")
# What is reported of a distance.
_SPREAD = {"avg": np.mean, "std": np.std, "min": np.min, "max": np.max}


class Evaluator:
  """`agree@1`, `agree@5`, `kl` and `cka` of two models, over a whole dataset; each example counts exactly once.

  `agree@k` is the share of the examples in which the class that the teacher prefers is among the k that the student
  prefers. `agree@5` is reported for more than 5 classes. `kl` is the mean of KL(teacher || student) in nats.

  `cka`, in [0, 1], is linear centred kernel alignment of the representations (Kornblith et al. 2019, "Similarity of
  neural network representations revisited", section 3): |Y'X|^2 / (|X'X| |Y'Y|), in Frobenius norms, where X and Y have
  a row an example and columns of mean 0. It does not change with a rotation or a scale of either, and their widths may
  differ. It is 0 where one of them does not vary.

  Of each of `distances` there are `NAME/avg`, `NAME/std`, `NAME/min` and `NAME/max` over the examples.

  The sums of squares are kept in double precision on the host, (width + width)^2 numbers, not the rows.

  Args:
    options: see there.
    predict_student, predict_teacher: `(variables, batch) -> (logits, intermediates)`.
    sharding: how a batch lies on the devices.
    where: the path of the options in the config, for messages.
  """

  def __init__(
    self, options: Agreement, predict_student: Predict, predict_teacher: Predict, *, sharding: NamedSharding, where: str
  ):
    self.data = batches.open_dataset(options, sharding, where)
    self._distances = {_name(each): distances.make(each) for each in options.distances}
    fn = functools.partial(
      _rows, {"student": predict_student, "teacher": predict_teacher}, options.layers(), self._distances
    )
    self._extractor = features.Extractor(fn, sharding, where)

  def check(self, variables: Variables) -> None:
    """Refuses, by the shapes of one batch, what the first evaluation would; `variables` may be shapes, too.

    Raises:
      UserError: the data cannot be read or do not fit a model, models of other classes, or no such layer.
    """
    self._extractor.shapes(variables, self.data)

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics; None if `interrupted()` became true on the way."""
    totals: dict[str, Any] = {}
    spreads: dict[str, list[np.ndarray]] = {name: [] for name in self._distances}
    with contextlib.closing(self._extractor.pieces(variables, self.data)) as pieces:
      for _, rows in pieces:
        for name, values in spreads.items():
          values.append(rows.pop(name).astype(np.float64))
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
    for name, values in spreads.items():
      found |= {f"{name}/{what}": float(of(np.concatenate(values))) for what, of in _SPREAD.items()}
    if "total" in totals:
      found["cka"] = _cka(totals["products"] - np.outer(totals["total"], totals["total"]) / size, sides[0].shape[1])
    return found


def _name(distance: recipes.DistanceOptions) -> str:
  """Returns what a distance is called, with its arguments that are not the default: `kind=agree_k=5`."""
  kind = next(name for name, each in recipes.DISTANCES.items() if each is type(distance))
  given = [f"{field.name}={getattr(distance, field.name)}" for field in dataclasses.fields(distance)
           if getattr(distance, field.name) != field.default]  # fmt: skip
  return "_".join([f"kind={kind}", *given])


def _rows(
  predict: Mapping[str, Predict],
  layers: Mapping[str, str],
  others: Mapping[str, distances.Distance],
  variables: Variables,
  batch: Batch,
) -> dict[str, Array]:
  """Returns for each example its agreements, its distances, and both representations, `student` and `teacher`."""
  outputs = {side: features.named_outputs(predict[side], variables, batch) for side in _SIDES}
  student, teacher = (outputs[side].get("output") for side in _SIDES)
  if student is None or teacher is None or student.ndim != 2 or student.shape != teacher.shape:
    shapes = " and ".join(str(getattr(each, "shape", None)) for each in (student, teacher))
    raise Refused(f"must give logits of the same classes [batch, classes] of both models, not {shapes}", key="pred")
  student, teacher = (logits.astype(jnp.float32) for logits in (student, teacher))
  found = {"agree@1": distances.agree(student, teacher)}
  if student.shape[1] > 5:
    found["agree@5"] = distances.agree(student, teacher, k=5)
  found["kl"] = distances.kl(student, teacher)
  found |= {name: distance(student, teacher) for name, distance in others.items()}
  return found | {side: _representation(outputs[side], layer, side) for side, layer in layers.items()}


def _representation(found: Mapping[str, Array], layer: str, side: str) -> Float[Array, "batch width"]:
  if layer not in found:
    raise Refused(f"names {layer!r}, which the {side} does not have{features.near_name(layer, found)}", key="layer")
  x = found[layer]
  if x.ndim < 2:
    line = f"names {layer!r}, which has shape {x.shape} in the {side} and is not one vector an example"
    raise Refused(line, key="layer")
  return x.astype(jnp.float32).mean(axis=tuple(range(1, x.ndim - 1)))


def _cka(covariances: Float[np.ndarray, "both both"], width: int) -> float:
  """Returns the alignment of two representations, the first of which has `width` columns.

  Args:
    covariances: centred sums of products of all columns of both.
    width: see above.
  """
  one, other = slice(None, width), slice(width, None)
  scale = np.linalg.norm(covariances[one, one]) * np.linalg.norm(covariances[other, other])
  return float(np.linalg.norm(covariances[one, other]) ** 2 / scale) if scale > 0 else 0.0
