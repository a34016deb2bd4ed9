"""The one way to refuse bad input: a `UserError` with one clear line."""

import contextlib
import difflib
import inspect
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from core.masking import masked

EXIT_USER_ERROR = 2

_SHOWN = 10  # Names of a long list.
_LONGEST = 300  # Characters of an error line.
_LONGEST_WORD = 60  # Of a line that is too long.


class UserError(Exception):
  """A mistake in a config, path, dataset or checkpoint that the person running the job can mend.

  The message is one line that says what is wrong, where, and what would be right. Programs print it as `error: ...` and
  exit with status 2; every other exception keeps its traceback, because it is ours to mend.

  Args:
    message: a text; line breaks become spaces, what is secret in a URL is masked, what would steer a terminal is
      written as an escape, and of more than 300 characters the middle is left out.
  """

  def __init__(self, message: str):
    line = " ".join(part.strip() for part in message.splitlines())
    super().__init__(cut(_with_short_words(_printable(masked(line)))))


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
  """Puts a key of the config before the line of a `UserError` that is raised within and names none.

  Raises:
    UserError: `config.model_init: weights 'no.npz': ...`.
  """
  try:
    yield
  except UserError as error:
    if str(error).startswith("config"):
      raise
    raise UserError(f"{where}: {error}") from None


def nearest(name: str, known: Iterable[str]) -> str:
  """Ends an error line: ` (did you mean X?)` where a known name is close, else ` (known: A, B, C)` or that none is.

  Of more than ten names the ten that are nearest stand there, and how many more there are.
  """
  known = sorted(known)
  if not known:
    return " (there are none)"
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  if close:
    return f" (did you mean {close[0]!r}?)"
  if len(known) <= _SHOWN:
    return f" (known: {', '.join(known)})"
  shown = difflib.get_close_matches(name, known, n=_SHOWN, cutoff=0.0)
  return f" (nearest: {', '.join(shown)}; there are {len(known)})"


def first_few(items: Sequence[str], *, joint: str = ", ", rest: str = " and {} more", shown: int = 3) -> str:
  """Returns the first of many for an error line: `a, b, c and 2 more`."""
  return joint.join(items[:shown]) + (rest.format(len(items) - shown) if len(items) > shown else "")


def cut(text: str, length: int = _LONGEST) -> str:
  """Returns a text of at most so many characters; the middle of a longer one is left out.

  What is secret in a URL is masked first: half of one is not known for one.
  """
  text = masked(text)
  half = (length - 5) // 2
  return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def multiples_near(number: int, of: int) -> str:
  """Returns what a size that does not divide could be instead: `8 or 16` for 12 of 8, `8` for 3 of 8."""
  below = number // of * of
  return f"{below} or {below + of}" if below > 0 else str(below + of)


def check_arguments(
  function: Callable,
  given: Mapping[str, Any],
  *,
  where: str,
  of: str,
  supplied: Collection[str] = (),
  elsewhere: Collection[str] = (),
) -> None:
  """Refuses keyword arguments, the keys of a config's dict, that `function` does not take, and ones that it lacks.

  Args:
    function: what is to be called with them, a function or a class.
    given: the arguments by name.
    where: the config's key that holds them, for the line.
    of: what `function` is to a reader, `the source tfds`.
    supplied: parameters of `function` that the caller gives, no business of the config.
    elsewhere: keys that the same dict may have for others, to be suggested as well.

  Raises:
    UserError: `input.data.splt is no key of the source tfds (did you mean 'split'?)`.
  """
  parameters = inspect.signature(function).parameters
  known = {key: parameter for key, parameter in parameters.items() if key not in supplied}
  for key in given:
    if key not in known:
      raise UserError(f"{where}.{key} is no key of {of}{nearest(key, [*known, *elsewhere])}")
  for key, parameter in known.items():
    if parameter.default is parameter.empty and key not in given:
      raise UserError(f"{where}.{key} is missing; {of} needs it")


def _printable(text: str) -> str:
  """Returns a text whose control and formatting characters, as files may hold them, are escapes: `\\x1b`."""
  if text.isprintable():
    return text
  return "".join(ascii(each)[1:-1] if unicodedata.category(each)[0] == "C" else each for each in text)


def _with_short_words(text: str) -> str:
  """Returns a text that is too long with its longest words, paths mostly, cut in their middle: the reason stays."""
  for word in sorted(text.split(" "), key=len, reverse=True):
    if len(text) <= _LONGEST or len(word) <= _LONGEST_WORD:
      break
    text = text.replace(word, f"{word[:20]}...{word[23 - _LONGEST_WORD :]}")
  return text
