"""Values for parameters by regex on their names: what `lr_mults`, `wd_mults` and `schedule` mean."""

from collections.abc import Sequence
from typing import Any

import jax

from core import trees
from core.errors import UserError, first_few
from core.recipe import rules as recipe_rules
from core.recipe.optimizer import Optimizer
from core.recipe.schedule import Decay

_REQUIRED = object()


def make_mask(
  params: trees.PyTree, rules: Sequence[tuple[str, Any]], *, where: str, default: Any = _REQUIRED
) -> trees.PyTree:
  """Returns a tree like `params`, with the value of the first rule whose regex matches a parameter's whole name.

  `make_mask(params, [("head/.*", True)], where="config.x", default=False)` is a mask as `optax.masked` takes it.

  Args:
    params: a tree of parameters or of their shapes; only the names are used.
    rules: (regex, value) pairs, tried in order; values are leaves (numbers, booleans), not None.
    where: the config key the rules come from, for error messages.
    default: the value of parameters that no rule matches. Without it, every parameter must be matched.

  Raises:
    UserError: a regex that matches no parameter, or only parameters that an earlier rule takes (but a last `.*` may be
      left with none); parameters that no rule matches, without `default`.
  """
  patterns = [pattern for pattern, _ in rules]
  names = [name for name, _ in trees.flatten_with_names(params)]
  recipe_rules.refuse_idle(patterns, names, where)
  winners = [trees.first_match(name, patterns) for name in names]
  unmatched = [name for name, winner in zip(names, winners) if winner is None]
  if unmatched and default is _REQUIRED:
    line = f"{where}: no pattern matches {first_few(unmatched)}; every parameter needs one (a last '.*' takes the rest)"
    raise UserError(line)
  values = [default if winner is None else rules[winner][1] for winner in winners]
  return jax.tree.unflatten(jax.tree.structure(params), values)


def schedule_rules(recipe: Optimizer, frozen: Sequence[str] = ()) -> list[tuple[str, Decay | None]]:
  """Returns `recipe.schedule` as rules, [(regex, schedule, or None for frozen)], also where it is one schedule.

  Args:
    recipe: of the run.
    frozen: regexes of parameters that never train, a task's teachers say. They stand before the rules.
  """
  rules = recipe.schedule if isinstance(recipe.schedule, tuple) else ((".*", recipe.schedule),)
  never = [(regex, None) for regex in frozen]
  return never + [rule for rule in rules if rule not in never]


def trainable_by(recipe: Optimizer, params: trees.PyTree, frozen: Sequence[str] = ()) -> trees.PyTree:
  """Returns a tree like `params` of booleans: False for those that `recipe.schedule` or `frozen` freezes.

  Raises:
    UserError: the rules do not fit the parameters, see `make_mask`.
  """
  rules = [(regex, schedule is not None) for regex, schedule in schedule_rules(recipe, frozen)]
  return make_mask(params, rules, where="config.schedule")
