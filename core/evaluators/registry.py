"""Evaluators by the name that a config's `evals.NAME.type` gives them."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import NamedSharding

from core.errors import UserError, nearest
from core.training.task import Predict

_TYPES = ("classification",)
# When to evaluate is the loop's matter; all other entries are arguments of the evaluator.
_SCHEDULE = ("type", "pred", "log_steps", "log_epochs", "log_examples", "log_percent")


def make(name: str, config: Mapping[str, Any], *, predict: Mapping[str, Predict], sharding: NamedSharding) -> Any:
  """The evaluator of `config.evals.<name>`.

  Args:
    name: its name in the config, the prefix of its metrics.
    config: `type`, `pred` (a name in `predict`), when to run (`log_steps`, ...), and the evaluator's own arguments.
    predict: the task's prediction functions.
    sharding: how a batch lies on the devices.

  Raises:
    UserError: an unknown type, pred or argument.
  """
  kind = config.get("type", "classification")
  if kind not in _TYPES:
    raise UserError(f"config.evals.{name}.type: no evaluator {kind!r}{nearest(kind, _TYPES)}")
  pred = config.get("pred", "predict")
  if pred not in predict:
    raise UserError(f"config.evals.{name}.pred: no prediction {pred!r}{nearest(pred, predict)}")
  evaluator: Callable = importlib.import_module(f"core.evaluators.{kind}").Evaluator
  kwargs = {key: value for key, value in config.items() if key not in _SCHEDULE}
  parameters = inspect.signature(evaluator).parameters
  known = [key for key, p in parameters.items() if key not in ("predict", "sharding") and p.kind == p.KEYWORD_ONLY]
  for key in kwargs:
    if key not in known:
      raise UserError(f"config.evals.{name}.{key} is not an option of {kind}{nearest(key, [*known, *_SCHEDULE])}")
  missing = [key for key in known if parameters[key].default is inspect.Parameter.empty and key not in kwargs]
  if missing:
    raise UserError(f"config.evals.{name} lacks {', '.join(missing)}")
  return evaluator(predict[pred], sharding=sharding, **kwargs)
