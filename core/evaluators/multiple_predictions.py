"""One evaluator over several predictions of a task: a model at several sizes, a teacher beside its student."""

from collections.abc import Callable, Mapping
from typing import Any

from core.state import Variables


class Evaluator:
  """Runs an evaluator once for each prediction; the prediction's label begins the metrics' names: `30/prec@1`.

  Made by the registry where a config's `pred` is a dict of predictions by label, `pred={"30": "predict_30"}`. The data
  are read once for each.

  Args:
    evaluators: by label.
  """

  def __init__(self, evaluators: Mapping[str, Any]):
    self._evaluators = dict(evaluators)
    self.data = next(iter(self._evaluators.values())).data

  def check(self, variables: Variables) -> None:
    """Refuses what the first evaluation would; `variables` may be shapes, too.

    Raises:
      UserError: as the evaluators do.
    """
    for evaluator in self._evaluators.values():
      evaluator.check(variables)

  def run(self, variables: Variables, interrupted: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Returns the metrics of all of them; None if `interrupted()` became true on the way."""
    found = {}
    for label, evaluator in self._evaluators.items():
      metrics = evaluator.run(variables, interrupted)
      if metrics is None:
        return None
      found |= {f"{label}/{name}": value for name, value in metrics.items()}
    return found
