"""What a flag's value is read by: a whole number, a number, one of several words, a list of such.

Each raises ValueError with what would be right: "a whole number above 0".
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from absl import flags


class Whole(flags.ArgumentParser):
  """Reads a whole number.

  Args:
    least: the least that is right.
  """

  def __init__(self, least: int):
    super().__init__()
    self._least = least
    self.syntactic_help = ""

  def parse(self, argument: Any) -> int:
    """Returns the number."""
    text = str(argument)
    if not re.fullmatch(r"-?\d{1,18}", text, flags=re.ASCII) or int(text) < self._least:
      raise ValueError("a whole number above 0" if self._least == 1 else f"a whole number from {self._least} on")
    return int(text)

  def flag_type(self) -> str:
    """Returns what absl calls the type."""
    return "int"


class Number(flags.ArgumentParser):
  """Reads a number that is not negative."""

  syntactic_help = ""

  def parse(self, argument: Any) -> float:
    """Returns the number."""
    try:
      value = float(argument)
    except ValueError:
      value = math.nan
    if not 0 <= value < math.inf:
      raise ValueError("a number that is not negative")
    return value

  def flag_type(self) -> str:
    """Returns what absl calls the type."""
    return "float"


class Choice(flags.ArgumentParser):
  """Reads one of several words.

  Args:
    choices: the words.
  """

  def __init__(self, choices: Sequence[str]):
    super().__init__()
    self._choices = choices
    self.syntactic_help = ""

  def parse(self, argument: Any) -> str:
    """Returns the word."""
    if argument not in self._choices:
      raise ValueError(f"one of {', '.join(self._choices)}")
    return argument

  def flag_type(self) -> str:
    """Returns what absl calls the type."""
    return "string"


class Listed(flags.ArgumentParser):
  """Reads values joined by commas.

  Args:
    each: reads one.
  """

  def __init__(self, each: flags.ArgumentParser):
    super().__init__()
    self._each = each
    self.syntactic_help = ""

  def parse(self, argument: Any) -> list[Any]:
    """Returns the values."""
    items = argument.split(",") if isinstance(argument, str) else argument
    try:
      return [self._each.parse(item) for item in items]
    except ValueError as error:
      raise ValueError(f"{error}, or several of such joined by commas") from None

  def flag_type(self) -> str:
    """Returns what absl calls the type."""
    return "list"
