"""Regexes over names of parameters: what is wrong with a list of them of which one has no effect."""

import difflib
import re
from collections.abc import Sequence

from core.errors import UserError
from core.recipe import words


def refuse_idle(patterns: Sequence[str], names: Sequence[str], where: str) -> None:
  """Refuses patterns of which one decides for no name; a last `.*`, which takes the rest, may be left with none.

  Args:
    patterns: regexes, of which the first that matches a whole name decides.
    names: of the parameters.
    where: the config key that the patterns come from.

  Raises:
    UserError: a pattern matches no name, or only names that earlier ones take.
  """
  winners = [first_match(name, patterns) for name in names]
  for i, pattern in enumerate(patterns):
    if i not in winners and pattern != ".*":
      raise UserError(f"{where}: {_why_idle(pattern, patterns[:i], names)}")


def first_match(name: str, patterns: Sequence[str]) -> int | None:
  """Returns the index of the first regex that matches the whole name; None where none does."""
  return next((i for i, pattern in enumerate(patterns) if re.fullmatch(pattern, name)), None)


def _why_idle(pattern: str, earlier: Sequence[str], names: Sequence[str]) -> str:
  """Says why a pattern has no effect, and what would help."""
  shown = words.shown(pattern)
  matched = next((name for name in names if re.fullmatch(pattern, name)), None)
  if matched is not None:
    taker = earlier[first_match(matched, earlier)]
    return f"{shown} comes after {words.shown(taker)}, which takes all it would match; put it first"
  # Compared without the regex's own characters, or `.*` and brackets would count as differences.
  literal = re.sub(r"[^\w/]", "", pattern)
  close = difflib.get_close_matches(literal, names, n=2, cutoff=0.0)
  return f"{shown} matches no parameter by its whole name (nearest: {', '.join(close)})"
