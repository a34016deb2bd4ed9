"""Which preprocessed examples are taken, and which of their entries."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from core.data import filters
from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which of the preprocessed examples are taken, and what of them.

  Attributes:
    condition: which, see `core.recipe.predicate`. None: all.
    where: the path of the condition in the config, for messages.
    keep_only: the entries that are kept. None: all.
  """

  condition: str | None = None
  where: str = ""
  keep_only: tuple[str, ...] | None = None

  def of(self, made: dict[str, Any], pp: str) -> dict[str, Any]:
    """Returns the entries of an example that are kept, and as `_meets` whether it meets the condition, if there is one.

    Raises:
      UserError: the condition does not fit the example, or it lacks an entry.
    """
    kept = kept_only(made, self.keep_only, pp)
    return kept if self.condition is None else {**kept, "_meets": filters.meets(self.condition, made, self.where)}


def kept_only(made: dict[str, Any], keep_only: Sequence[str] | None, pp: str) -> dict[str, Any]:
  """Returns the entries of an example, or of a batch, that `config.input.keep_only` names.

  Args:
    made: what the preprocessing leaves.
    keep_only: the names. None: all.
    pp: the path of the preprocessing in the config, for messages.

  Raises:
    UserError: there is no such entry.
  """
  for key in keep_only or ():
    if key not in made:
      raise UserError(f"config.input.keep_only: {pp} leaves no {key!r}; it leaves: {', '.join(sorted(made))}")
  return made if keep_only is None else {key: made[key] for key in keep_only}
