"""What a type wants, in words: for error lines, `train --help` and the page of all keys."""

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable
from typing import Any

import msgspec

from core.errors import cut
from core.recipe import annotations
from core.recipe.types import Check, Fraction, NonNegative, OneOf

_LONGEST_VALUE = 80
_SHOWN_CHOICES = 10


def describe(kind: Any) -> str:
  """Returns `"a whole number from 1 on"`, `"a dict or None"`, `"a list of (a regular expression, a number)"`."""
  base, markers = annotations.split(kind)
  for marker in markers:
    if isinstance(marker, Check):
      return marker.words
    if isinstance(marker, OneOf) and not marker.beside:
      return "a dict"
  if base is int or base is float:
    return _number(base, markers)
  if dataclasses.is_dataclass(base):
    return "a dict"
  if base is str:
    return "text" + (" that is not empty" if any(getattr(m, "min_length", None) for m in markers) else "")
  words = {bool: "True or False", type(None): "None", Any: "any value", dict: "a dict"}
  if base in words:
    return words[base]
  args = typing.get_args(base)
  if annotations.is_literal(base):
    return choices(args)
  if typing.get_origin(base) is dict:
    return "a dict" if args[1] is Any else f"a dict of {_plural(describe(args[1]))}"
  if typing.get_origin(base) is tuple:
    if len(args) == 2 and args[1] is Ellipsis:
      return f"a list of {_plural(describe(args[0]))}"
    return f"({', '.join(map(describe, args))})"
  if args:
    return " or ".join(dict.fromkeys(map(describe, args)))
  return getattr(base, "__name__", str(base))


def _number(base: type, markers: Iterable[Any]) -> str:
  bounds: dict[str, Any] = {}
  for marker in markers:
    if isinstance(marker, msgspec.Meta):
      bounds |= {key: value for key in ("ge", "gt", "le", "lt") if (value := getattr(marker, key)) is not None}
  low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
  noun = "a whole number" if base is int else "a number"
  # Bounds that only keep out what no machine's number holds are none to a reader.
  low, high = (None if bound is not None and abs(bound) > 1e18 else bound for bound in (low, high))
  if low is None and high is None:
    return noun
  if high is None:
    if low == 0:
      return f"{noun} above 0" if "gt" in bounds else f"{noun} that is not negative"
    return f"{noun} above {low}" if "gt" in bounds else f"{noun} from {low} on"
  if low is None:
    return f"{noun} below {high}" if "lt" in bounds else f"{noun} of at most {high}"
  return f"{noun} in {'(' if 'gt' in bounds else '['}{low}, {high}{')' if 'lt' in bounds else ']'}"


def _plural(words: str) -> str:
  plural = {"text": "texts", "a dict": "dicts", "a number": "numbers", "a whole number": "whole numbers"}
  plural |= {"a regular expression": "regular expressions", "text that is not empty": "texts"}
  if words in plural:
    return plural[words]
  match = re.fullmatch(r"a (whole number|number)\b(.*)", words)
  return f"{match[1]}s{match[2].replace(' that is ', ' that are ')}" if match else words


def choices(values: Iterable[Any]) -> str:
  """Returns `"one of 'a', 'b'"`; of many the first ten and a count."""
  values = [repr(value) for value in values]
  if len(values) == 1:
    return values[0]
  some = ", ".join(values[:_SHOWN_CHOICES])
  return f"one of {some}" + (f" and {len(values) - _SHOWN_CHOICES} more" if len(values) > _SHOWN_CHOICES else "")


def key_of(name: str, annotation: Any) -> str:
  """Returns what a config calls a field: its name, of a duration with a unit."""
  return f"{name}_{annotations.units_of(annotation)[0]}" if annotations.is_duration(annotation) else name


def needed(kind: type, name: str) -> str:
  """Returns what a field that is missing would hold: `"the learning rate (a number that is not negative)"`."""
  annotation = annotations.hints(kind)[name]
  if annotations.is_duration(annotation):
    units = " or ".join(f"{name}_{unit}" for unit in annotations.units_of(annotation))
    return f"set {units}"
  meaning = documentation(kind).get(name, "").split(". ")[0].rstrip(".")
  return f"it is {meaning} ({describe(annotation)})" if meaning else f"it is {describe(annotation)}"


def duration_number(unit: str) -> Any:
  """Returns the type of a duration's number."""
  return Fraction if unit == "percent" else NonNegative


def shown(value: Any) -> str:
  """Returns a value's repr on one line, cut to a length that a line has room for."""
  try:
    text = repr(value)
  except Exception:  # Whatever a stranger's object does.
    text = f"a {type(value).__name__}"
  return cut(" ".join(text.split()), _LONGEST_VALUE)


def documentation(kind: type) -> dict[str, str]:
  """Returns the words that the docstrings of a dataclass and its bases have for each field, under `Attributes:`."""
  found: dict[str, str] = {}
  for base in reversed(kind.__mro__):
    found |= _attributes(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
  return found


def first_sentence(kind: Any) -> str:
  """Returns the first sentence of a class's docstring; nothing for what has none of its own."""
  doc = inspect.cleandoc(getattr(kind, "__doc__", None) or "") if dataclasses.is_dataclass(kind) else ""
  return doc.split("\n\n")[0].replace("\n", " ").rstrip(".")


def _attributes(doc: str) -> dict[str, str]:
  _, _, section = doc.partition("Attributes:\n")
  found: dict[str, str] = {}
  name = None
  for text in section.splitlines():
    if text and not text.startswith("  "):
      break
    if match := re.fullmatch(r"  ([\w, ]+): (.*)", text):
      names = [each.strip() for each in match[1].split(",")]
      name = names[0]
      found |= dict.fromkeys(names, match[2])
    elif name and text.strip():
      for each in names:
        found[each] += " " + text.strip()
  return found
