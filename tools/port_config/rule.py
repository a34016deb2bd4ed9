"""What a rule of the table is: where a key of big_vision goes, and what is said of it."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

KEPT = "kept"
RENAMED = "renamed"
IDLE = "without effect here"
OTHER = "other meaning here"
REFUSED = "refused"
VERDICTS = (KEPT, RENAMED, IDLE, OTHER, REFUSED)

DROP = object()  # What a rule's function gives where nothing is to be written.


class Unportable(Exception):
  """Says why a value cannot be carried over; what it stands at is refused with these words."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """One row of the table.

  Attributes:
    there: the path of the key in big_vision's config; of the other tables a name. Words in capitals stand for names of
      a config's own: NAME of an evaluation, TEACHER of a model that is distilled, PART of a component of the input,
      UNIT of steps, examples, epochs and percent.
    verdict: one of `VERDICTS`.
    here: the path of the key here; "" for the same.
    said: what a reader is told.
    to: makes the value here of `(value, port)`; None leaves it. It may give `DROP`, or raise `Unportable`.
    absent: makes the value here where the key is missing there, of `(port, names)`; None: nothing is written then.
    same: whether the numbers are the same; None where that is no question.
  """

  there: str
  verdict: str
  here: str = ""
  said: str = ""
  to: Callable[[Any, Any], Any] | None = None
  absent: Callable[[Any, Mapping[str, str]], Any] | None = None
  same: bool | None = True

  @property
  def place(self) -> str:
    """The path of the key here."""
    return "" if self.verdict in (IDLE, REFUSED) else self.here or self.there


@dataclasses.dataclass(frozen=True)
class Said:
  """A row of what is told of one config.

  Attributes:
    verdict: see `Rule`.
    there: the path in big_vision's config.
    here: the path here; "" where nothing was written.
    said: what a reader is told.
  """

  verdict: str
  there: str
  here: str
  said: str


_WILD = re.compile(r"[A-Z]{2,}")
UNITS = ("steps", "epochs", "examples", "percent")


class Patterns:
  """Finds the rule of a path, of which a config's own names are a part.

  Args:
    rules: the table; the first rule that matches decides.
    names: what the words in capitals may stand for; any name where they are not among these.
  """

  def __init__(self, rules: Sequence[Rule], names: Mapping[str, Sequence[str]]):
    self._names = {"UNIT": UNITS, **names}
    self._rules = [(rule, [self._token(token) for token in rule.there.split(".")]) for rule in rules]

  def find(self, path: Sequence[str]) -> tuple[Rule, dict[str, str]] | None:
    """Returns the rule of a path, and what its words in capitals stand for."""
    return next(((rule, names) for rule, names in self._matching(path) if rule.there.count(".") == len(path) - 1), None)

  def below(self, path: Sequence[str]) -> bool:
    """Tells whether there are rules for what stands in a dict."""
    return any(rule.there.count(".") >= len(path) for rule, _ in self._matching(path))

  def _matching(self, path: Sequence[str]) -> Iterator[tuple[Rule, dict[str, str]]]:
    for rule, tokens in self._rules:
      found = [token.fullmatch(key) for token, key in zip(tokens, path)]
      if len(tokens) >= len(path) and all(found):
        yield rule, {name: value for match in found for name, value in match.groupdict().items()}

  def _token(self, token: str) -> re.Pattern[str]:
    def group(match: re.Match[str]) -> str:
      known = self._names.get(match[0])
      return f"(?P<{match[0]}>{'.+' if known is None else '|'.join(map(re.escape, known)) or '(?!)'})"

    pattern, last = "", 0
    for match in _WILD.finditer(token):
      pattern += re.escape(token[last : match.start()]) + group(match)
      last = match.end()
    return re.compile(pattern + re.escape(token[last:]))


def filled(path: str, names: Mapping[str, str]) -> tuple[str, ...]:
  """Returns a path as its keys, with what its words in capitals stand for."""
  return tuple(_WILD.sub(lambda match: names.get(match[0], match[0]), token) for token in path.split("."))
