"""The kinds of value that a config may hold: numbers with their bounds, regexes, durations, one of several forms.

A recipe is made of frozen dataclasses whose fields have these types. `core.recipe.parse` reads a config into them, and
`core.recipe.words` says in an error line or on a page of the docs what a type wants.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta

T = TypeVar("T")

_MOST = 2**63 - 1
# The largest float32, in which training computes. It is a bound that infinity breaks, and NaN, which exceeds nothing.
_LARGEST = 3.4028234663852886e38


@dataclasses.dataclass(frozen=True)
class Check:
  """A marker of an annotation: what a value must be besides.

  Attributes:
    words: what is right, "a regular expression".
    fn: returns the value, changed or not; raises ValueError with the reason if it is wrong.
  """

  words: str
  fn: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
  """A marker of an annotation: a dict that is read as one of several dataclasses, chosen by name.

  Attributes:
    key: where the name stands, within the dict, or beside it in the dict around it if `beside`.
    kinds: the dataclass of each name. Of several names of one dataclass the first is the one that is printed.
    default: the name where none is given, or a function of the dict that gives it; None: it must be given.
    beside: see `key`.
    other: what is read where the name is none of `kinds`, `dict[str, Any]` say; None: such a name is refused.
  """

  key: str
  kinds: Mapping[str, type]
  default: str | Callable[[Mapping[str, Any]], str] | None = None
  beside: bool = False
  other: Any = None


class Refused(ValueError):
  """What a dataclass's `__post_init__` raises: a line without the path of the config, which the reader puts in front.

  Args:
    line: `"rho_min, 0.5, must not exceed rho_max, 0.1"`; or what follows the path and a colon.
    key: of the field that is wrong; the line then goes on after its path, `"must not exceed ..."`.
  """

  def __init__(self, line: str, key: str | None = None):
    super().__init__(line)
    self.key = key


def _compiles(pattern: str) -> str:
  try:
    re.compile(pattern)
  except (re.error, RecursionError, OverflowError) as error:
    raise ValueError(f"{error}") from None
  return pattern


def _is_path(path: str) -> str:
  if "\0" in path:
    raise ValueError("a path holds no NUL")
  return path


Integer = Annotated[int, Meta(ge=-_MOST - 1, le=_MOST)]
Whole = Annotated[int, Meta(ge=0, le=_MOST)]
Count = Annotated[int, Meta(ge=1, le=_MOST)]
BatchSize = Annotated[int, Meta(ge=1, le=1 << 20)]  # More examples a step exceed the memory of any machine.
Step = Annotated[int, Meta(ge=0, le=2**31 - 1)]  # As train states and optimizers count them.
Steps = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Tokens = Steps  # int32 numbers them, too.
Layers = Annotated[int, Meta(ge=1, le=10_000)]  # Of more, the program takes longer to write down than to run.
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]  # JAX's keys hold 32 bits of it, and would take 2**32 for 0.
Number = Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST)]
NonNegative = Annotated[float, Meta(ge=0, le=_LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=_LARGEST)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(ge=0, lt=1)]

Text = Annotated[str, Meta(min_length=1)]
FilePath = Annotated[str, Meta(min_length=1), Check("a path", _is_path)]
Regex = Annotated[str, Check("a regular expression", _compiles)]
Dtype = Literal["float32", "bfloat16"]

# [(regex, value)], of which the first that matches a name whole decides.
Rules = tuple[tuple[Regex, T], ...]
