"""Makes the evaluator of an entry of a config's `evals` by the type of its options."""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import NamedSharding

from core.errors import UserError, nearest
from core.evaluators import multiple_predictions
from core.recipe import evaluators as recipes
from core.recipe import words
from core.recipe.evaluators_base import Evaluation
from core.recipe.types import Refused
from core.state import Predict

# The module of core.evaluators that holds each.
MODULES: dict[type[Evaluation], str] = {
  recipes.Agreement: "agreement",
  recipes.Classification: "classification",
  recipes.Contrastive: "contrastive",
  recipes.Fewshot: "fewshot",
  recipes.Knn: "knn",
  recipes.Mean: "mean_outputs",
  recipes.Retrieval: "retrieval",
  recipes.Save: "save_outputs",
  recipes.Sharpness: "sharpness",
  recipes.Zeroshot: "zeroshot",
}


def make(
  name: str,
  options: Evaluation,
  *,
  predict: Mapping[str, Predict],
  sharding: NamedSharding,
  output_dir: Path | None = None,
  batch_size: int | None = None,
) -> Any:
  """Returns the evaluator of `config.evals.<name>`.

  Every evaluator has `check(variables)`, which refuses what the first evaluation would, `run(variables, interrupted) ->
  {metric: value} | None`, and `data`, the batches that it reads, or the first of them where there are several.

  Args:
    name: its name in the config, the prefix of its metrics.
    options: a dataclass of `core.recipe.evaluators`. Where its `pred` is a dict of predictions by label, the evaluator
      runs for each of them (see `multiple_predictions`).
    predict: the task's prediction functions.
    sharding: how a batch lies on the devices.
    output_dir: evaluators that write files do so in its subfolder `name`, or `LABEL/name` of several predictions.
    batch_size: that of evaluators whose options give none.

  Raises:
    UserError: the task has no such prediction, or what an evaluator refuses.
  """
  where = f"config.evals.{name}"
  options = dataclasses.replace(options, batch_size=options.batch_size or batch_size)
  if options.batch_size is None:
    raise UserError(f"{where}.batch_size is missing; it is the number of examples a step over all devices")
  build = functools.partial(_build, sharding=sharding, where=where)
  if isinstance(options.pred, dict):
    functions = {
      label: _functions({"predict": each}, options.pred_kw, predict, where, f".{label}")
      for label, each in options.pred.items()
    }
    folders = {label: None if output_dir is None else output_dir / label / name for label in functions}
    return multiple_predictions.Evaluator(
      {label: build(options, functions[label], output_dir=folders[label]) for label in functions}
    )
  functions = _functions(options.predictions(), options.pred_kw, predict, where)
  return build(options, functions, output_dir=None if output_dir is None else output_dir / name)


def _build(options: Evaluation, functions: Mapping[str, Predict], *, output_dir: Path | None, **kw: Any) -> Any:
  evaluator = importlib.import_module(f"core.evaluators.{MODULES[type(options)]}").Evaluator
  if "output_dir" in inspect.signature(evaluator).parameters:  # It writes files.
    kw["output_dir"] = output_dir
  return evaluator(options, **functions, **kw)


def _functions(
  names: Mapping[str, str], keywords: Mapping[str, Any], predict: Mapping[str, Predict], where: str, label: str = ""
) -> dict[str, Predict]:
  """Returns the predictions that an evaluator takes, `predict`, or one a side, `predict_image` and `predict_text`."""
  found = {}
  for argument, name in names.items():
    if name not in predict:
      path = f"{where}.pred{label or argument.removeprefix('predict').replace('_', '.')}"
      raise UserError(f"{path}: the task has no prediction {name!r}{nearest(name, predict)}")
    fn = predict[name]
    found[argument] = _with_keywords(fn, name, keywords, f"{where}.pred_kw") if keywords else fn
  return found


def _with_keywords(fn: Predict, name: str, keywords: Mapping[str, Any], where: str) -> Predict:
  """Returns a prediction with keyword arguments; what it refuses of them is a line with their path."""
  parameters = list(inspect.signature(fn).parameters.values())
  known = [p.name for p in parameters[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    for key in keywords:
      if key not in known:
        raise UserError(f"{where}.{key} is no argument of the prediction {name!r}{nearest(key, known)}")

  @functools.wraps(fn)
  def predict(variables: Any, batch: Any) -> Any:
    try:
      return fn(variables, batch, **keywords)
    except (UserError, Refused):
      raise
    except Exception as error:  # Whatever it is: all but these arguments is what the prediction always gets.
      refused = f"{where}: the prediction {name!r} cannot take {words.shown(dict(keywords))}: {error}"
      raise UserError(refused) from error

  return predict
