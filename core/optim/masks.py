"""Values for parameters by regex on their names: what `lr_mults`, `wd_mults` and `schedule` mean."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from core import trees
from core.errors import UserError, first_few

_REQUIRED = object()


def make_mask(
  params: trees.PyTree, rules: Sequence[tuple[str, Any]], *, where: str, default: Any = _REQUIRED
) -> trees.PyTree:
  """A tree like `params`, holding for each parameter the value of the first rule whose regex matches its whole name.

  `make_mask(params, [("head/.*", True)], where="config.x", default=False)` is a mask as `optax.masked` takes it.

  Args:
    params: a tree of parameters or of their shapes; only the names are used.
    rules: (regex, value) pairs, tried in order; values are leaves (numbers, booleans), not None.
    where: the config key the rules come from, for error messages.
    default: the value of parameters that no rule matches. Without it, every parameter must be matched.

  Raises:
    UserError: a rule that is no (regex, value) pair; a regex that matches no parameter, or only parameters that an
      earlier rule takes (but a last `.*` may be left with none); parameters that no rule matches, without `default`.
  """
  patterns = [pattern for pattern, _ in checked(rules, where)]
  names = [name for name, _ in trees.flatten_with_names(params)]
  winners = [trees.first_match(name, patterns) for name in names]
  for i, pattern in enumerate(patterns):
    if i not in winners and pattern != ".*":
      raise UserError(f"{where}: {_why_idle(pattern, patterns[:i], names)}")
  unmatched = [name for name, winner in zip(names, winners) if winner is None]
  if unmatched and default is _REQUIRED:
    raise UserError(
      f"{where}: no pattern matches {first_few(unmatched)}; every parameter needs one (a last '.*' takes the rest)"
    )
  values = [default if winner is None else rules[winner][1] for winner in winners]
  return jax.tree.unflatten(jax.tree.structure(params), values)


def schedule_rules(config: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
  """`config.schedule` as rules, [(regex, arguments of a schedule, or None for frozen)], also where it is one schedule.

  What stands before them freezes `config.teachers`, the fixed models of a distillation.

  Raises:
    UserError: a rule is no (regex, value) pair.
  """
  rules = config.get("schedule", {})
  rules = checked(rules, "config.schedule") if isinstance(rules, list | tuple) else [(".*", rules)]
  teachers = [(f"{name}/.*", None) for name in config.get("teachers") or ()]
  return teachers + [rule for rule in rules if rule not in teachers]


def trainable_by(config: Mapping[str, Any], params: trees.PyTree) -> trees.PyTree:
  """A tree like `params` of booleans: False for those that `config.schedule` freezes.

  Raises:
    UserError: the rules do not fit the parameters, see `make_mask`.
  """
  rules = [(regex, arguments is not None) for regex, arguments in schedule_rules(config)]
  return make_mask(params, rules, where="config.schedule")


def checked(rules: Any, where: str) -> list[tuple[str, Any]]:
  """`rules`, once each is known to be a (regex, value) pair.

  Raises:
    UserError: one is not.
  """
  for rule in rules:
    if not isinstance(rule, tuple | list) or len(rule) != 2 or not isinstance(rule[0], str):
      raise UserError(f"{where}: expected a list of (regex, value) pairs, found {rule!r}")
    try:
      re.compile(rule[0])
    except re.error as error:
      raise UserError(f"{where}: {rule[0]!r} is not a regular expression: {error}") from None
  return [tuple(rule) for rule in rules]


def _why_idle(pattern: str, earlier: Sequence[str], names: Sequence[str]) -> str:
  """Why the rule of `pattern` has no effect, and the remedy."""
  matched = next((name for name in names if re.fullmatch(pattern, name)), None)
  if matched is not None:
    taker = earlier[trees.first_match(matched, earlier)]
    return f"{pattern!r} comes after {taker!r}, which takes all it would match; put it first"
  # Compared without the regex's own characters, or `.*` and brackets would count as differences.
  literal = re.sub(r"[^\w/]", "", pattern)
  close = difflib.get_close_matches(literal, names, n=2, cutoff=0.0)
  return f"{pattern!r} matches no parameter by its whole name (nearest: {', '.join(close)})"
