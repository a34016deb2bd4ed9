"""Evaluators by the name that a config's `evals.NAME.type` gives them."""

import contextlib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from core.errors import UserError, check_arguments, nearest
from core.evaluators import multiple_predictions
from core.state import Predict

# The module of core.evaluators that holds each.
_TYPES = {
  "agreement": "agreement",
  "classification": "classification",
  "contrastive": "contrastive",
  "fewshot": "fewshot",
  "fewshot_lsr": "fewshot",  # The name in published configs.
  "knn": "knn",
  "mean": "mean",
  "retrieval": "retrieval",
  "proj.image_text.retrieval": "retrieval",
  "save": "save",
  "sharpness": "sharpness",
  "zeroshot": "zeroshot",
  "proj.image_text.discriminative_classifier": "zeroshot",
}
# When to evaluate is the loop's matter, and what is evaluated is said here; all else are arguments of the evaluator.
_OURS = ("type", "pred", "pred_kw", "log_steps", "log_epochs", "log_examples", "log_percent")
_SUPPLIED = (
  "predict",
  *(f"predict_{side}" for side in ("image", "text", "student", "teacher")),
  "sharding",
  "output_dir",
)


def make(
  name: str,
  config: Mapping[str, Any],
  *,
  predict: Mapping[str, Predict],
  sharding: NamedSharding,
  output_dir: Path | None = None,
  batch_size: int | None = None,
) -> Any:
  """The evaluator of `config.evals.<name>`.

  Every evaluator has `check(state)`, which refuses what the first evaluation would, `run(state, interrupted) ->
  {metric: value} | None`, and `data`, the batches that it reads, or the first of them where there are several.

  Args:
    name: its name in the config, the prefix of its metrics.
    config: `type`, `pred` (a name in `predict`), `pred_kw` (keyword arguments of that prediction), when to run
      (`log_steps`, ...), and the evaluator's own arguments. An evaluator of images and texts takes two predictions,
      `pred=dict(image="image", text="text")` unless told otherwise, as does that of a student and its teacher. Any
      other takes a dict of predictions by label as well, and is then run for each (see `multiple_predictions`).
    predict: the task's prediction functions.
    sharding: how a batch lies on the devices.
    output_dir: evaluators that write files do so in its subfolder `name`.
    batch_size: that of evaluators whose config gives none.

  Raises:
    UserError: an unknown type, pred or argument.
  """
  where = f"config.evals.{name}"
  kind = config.get("type", "classification")
  if kind not in _TYPES:
    raise UserError(f"{where}.type: no evaluator {kind!r}{nearest(str(kind), _TYPES)}")
  evaluator: Callable = importlib.import_module(f"core.evaluators.{_TYPES[kind]}").Evaluator
  pred = config.get("pred")
  pred = pred.to_dict() if isinstance(pred, ConfigDict) else pred
  config = {**config, "pred": pred}
  if isinstance(pred, Mapping) and not isinstance(getattr(evaluator, "default_pred", None), Mapping):
    if not pred:
      raise UserError(f"{where}.pred is an empty dict; give predictions by label, or one by name")
    options = dict(predict=predict, sharding=sharding, batch_size=batch_size)
    folder = lambda label: None if output_dir is None else output_dir / label
    each = {label: make(name, {**config, "pred": pred[label]}, output_dir=folder(label), **options) for label in pred}
    return multiple_predictions.Evaluator(each)
  takes = inspect.signature(evaluator).parameters
  functions = _functions(evaluator, config, predict, where)
  kwargs = {key: value for key, value in config.items() if key not in _OURS}
  if batch_size is not None and "batch_size" in takes:
    kwargs.setdefault("batch_size", batch_size)
  check_arguments(evaluator, kwargs, where=where, of=f"the evaluator {kind}", supplied=_SUPPLIED, elsewhere=_OURS)
  if output_dir is not None and "output_dir" in takes:
    kwargs["output_dir"] = output_dir / name
  with named(name):
    return evaluator(**functions, sharding=sharding, **kwargs)


def _functions(
  evaluator: Callable, config: Mapping[str, Any], predict: Mapping[str, Predict], where: str
) -> dict[str, Predict]:
  """The predictions that an evaluator takes: `predict`, or one a side, `predict_image` and `predict_text`."""
  given, default = config.get("pred"), getattr(evaluator, "default_pred", "predict")
  names = {"predict": given or default}
  if isinstance(default, Mapping):
    # Published configs say "predict" where one function serves both sides.
    chosen = default if given in (None, "predict") else given
    if not isinstance(chosen, Mapping) or chosen.keys() != default.keys():
      raise UserError(f"{where}.pred must be a dict like {default}, got {given!r}")
    names = {f"predict_{side}": name for side, name in chosen.items()}
  for name in names.values():
    if name not in predict:
      raise UserError(f"{where}.pred: no prediction {name!r}{nearest(str(name), predict)}")
  pred_kw = config.get("pred_kw") or {}
  return {key: functools.partial(predict[name], **pred_kw) if pred_kw else predict[name] for key, name in names.items()}


def module_of(kind: str | None) -> str | None:
  """The module of core.evaluators that holds the type of an evaluator, of a published name, too; None: no such type."""
  return _TYPES.get(kind or "classification")


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
  """A context in which an evaluator's `UserError` gets its name: of `evals.classes ...` comes `config.evals.NAME...`.

  Raises:
    UserError: what was raised within.
  """
  try:
    yield
  except UserError as error:
    raise UserError(re.sub(r"^(config: )?evals\b", f"config.evals.{name}", str(error))) from error
