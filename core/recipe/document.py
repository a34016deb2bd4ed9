"""Every key of a config with its type, default and meaning, from the recipe's own annotations and docstrings.

A recipe is told in sections, one a dict of the config. Where a name chooses what a dict may hold, `decay_type` of a
schedule for one, the keys that all choices have come first, and then those that each has besides. What may stand in
several places is told at the first and referred to from the others.
"""

import dataclasses
import re
import textwrap
import types as builtin_types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.recipe import annotations, words
from core.recipe.duration import Duration
from core.recipe.types import OneOf

_WIDTH = 110
_HEAD = ("| key | type | default | meaning |", "|---|---|---|---|")
_HOW_TO_READ = """\
# Every key of a config

A config file's `get_config` returns a dict, or a `ConfigDict`, with these keys; `train --keys` prints those of a
project's own training. A key that is not here is refused, with its path and the nearest name.

- *required* in the place of a default: the key must be given.
- `ckpt_{steps,examples,epochs,percent}` is a duration: one of `ckpt_steps`, `ckpt_examples`, `ckpt_epochs` and
  `ckpt_percent` may be given. A percentage is a fraction of the whole run, in [0, 1].
- `NAME` in a path stands for a name of your own: `evals.NAME.type` is `evals.val.type` of an evaluation `val`.
- A list may be written as a tuple as well.

This page is made of the recipes' own docstrings: `./bazelw run //tools:config_docs` writes it anew.
"""


# A key's name, annotation, default and meaning.
_Field = tuple[str, Any, str, str]


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of a config.

  Attributes:
    name: within its section, `warmup_{steps,examples,epochs,percent}`.
    kind: what it wants, in words.
    default: as a person would write it; "" where there is none, "-" where none is needed.
    meaning: a few sentences.
    section: the title of the section that tells what stands in it; "" of what is no dict.
  """

  name: str
  kind: str
  default: str
  meaning: str
  section: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
  """A dict of a config, or what a choice adds to one.

  Attributes:
    title: the path of the dict, `schedule`; of a choice `schedule with decay_type = cosine`.
    about: what it is; of a dict with choices, how they are made.
    keys: of the dict.
    choices: names to choose from, all those of a choice, and the title of its section; "" for one that adds nothing.
  """

  title: str
  about: str
  keys: tuple[Key, ...]
  choices: tuple[tuple[tuple[str, ...], str], ...] = ()


def sections(kinds: Mapping[str, type]) -> list[Section]:
  """Returns the sections of recipes, each of which begins with the keys that those before it do not have.

  Args:
    kinds: the recipes by title.
  """
  told = _Telling()
  for title, kind in kinds.items():
    told.recipe(title, kind)
  return told.sections


def table(kind: type) -> str:
  """Returns a recipe's keys as text: a line with key, type and default, and the meaning below it."""
  lines = []
  for section in sections({getattr(kind, "TITLE", kind.__name__): kind}):
    lines += [section.title, *_wrapped(section.about, "  ")]
    if section.choices:
      lines += _wrapped("one of " + ", ".join(" or ".join(names) for names, _ in section.choices), "  ")
    for key in section.keys:
      lines.append(f"  {key.name}  ({_with_section(key.kind, key.section)}; {key.default or 'required'})")
      lines += _wrapped(key.meaning, "      ")
    lines.append("")
  return "\n".join(lines)


def markdown(kinds: Mapping[str, type]) -> str:
  """Returns a page of the docs: the keys that all trainings share, then what each kind of training reads besides.

  Args:
    kinds: the recipes by title; the first is the one that the others extend.
  """
  found = sections(kinds)
  parts = [_HOW_TO_READ, "\n".join(f"- {_link(section.title)}" for section in found if section.title in kinds), ""]
  for section in found:
    parts += [f"{'##' if section.title in kinds else '###'} {section.title}", ""]
    parts += [section.about, ""] if section.about else []
    if section.choices:
      parts += [*(_choice(names, title) for names, title in section.choices), ""]
    if section.keys:
      parts += [*_HEAD, *map(_row, section.keys), ""]
  return "\n".join(parts)


class _Telling:
  """Collects the sections of recipes, and knows what has been told and where."""

  def __init__(self) -> None:
    self.sections: list[Section] = []
    self._titles: dict[Any, str] = {}
    self._recipes: dict[type, str] = {}

  def recipe(self, title: str, kind: type) -> None:
    """Tells the keys of a recipe that those which it extends do not have alike."""
    extended = [base for base in kind.__mro__ if base in self._recipes]
    fields = [field for field in _fields(kind) if all(field not in _fields(base) for base in extended)]
    about = _about(kind)
    if extended:
      about += f" These are its keys besides those of {_link(self._recipes[extended[0]])}."
    self._recipes[kind] = title
    self._dict(title, "", fields, about, of=f"of {title[:1].lower()}{title[1:]}")

  def _dict(self, title: str, prefix: str, fields: Sequence[_Field], about: str, *, of: str) -> None:
    """Tells keys of a dataclass, then what stands in them."""
    keys, inner = [], []
    for name, annotation, default, meaning in fields:
      section = ""
      for part in _parts(annotation):
        below = f"{prefix}{name}{'.NAME' if _is_by_name(annotation) else ''}"
        if _identity(part) not in self._titles:
          self._titles[_identity(part)] = self._unique(below, of)
          inner.append((part, below))
        section = section or self._titles[_identity(part)]
      keys.append(Key(_spelled(name, annotation), _kind(annotation), default, meaning, section))
    self.sections.append(Section(title, about, tuple(keys)))
    for part, below in inner:
      self._part(part, below, of)

  def _part(self, part: Any, path: str, of: str) -> None:
    """Tells a dataclass, or a choice of several, that stands at a path."""
    title = self._titles[_identity(part)]
    if not isinstance(part, OneOf):
      self._dict(title, f"{path}.", _fields(part), _about(part), of=of)
      return
    names: dict[type, list[str]] = {}
    for name, kind in part.kinds.items():
      names.setdefault(kind, []).append(name)
    shared = _shared(names)
    chosen_by = f"{_parent(path)}{part.key}" if part.beside else f"{path}.{part.key}"
    place, choices = len(self.sections), []
    for kind, (name, *_) in names.items():
      if kind not in self._titles:
        own = [field for field in _fields(kind) if field not in shared]
        self._titles[kind] = f"{title} with {part.key} = {name}" if own else title
        if own:
          self._dict(self._titles[kind], f"{path}.", own, _about(kind), of=f"with {part.key} = {name}")
      choices.append((tuple(names[kind]), self._titles[kind] if self._titles[kind] != title else ""))
    default = f"; `{part.default}` if it is not given" if isinstance(part.default, str) else ""
    about = f"`{chosen_by}` chooses what stands here{default}."
    about += " All choices have these keys, and some have keys of their own." if shared else ""
    keys = tuple(Key(_spelled(name, a), _kind(a), default, meaning) for name, a, default, meaning in shared)
    self.sections.insert(place, Section(title, about, keys, tuple(choices)))

  def _unique(self, title: str, of: str) -> str:
    """Returns a title that no section has yet: `model` of a second recipe says whose it is."""
    taken = self._titles.values()
    return title if title not in taken else f"{title} {of}"


def _fields(kind: type) -> list[_Field]:
  """Returns the name, annotation, default and meaning of each key of a dataclass."""
  meanings, of_fields = words.documentation(kind), annotations.hints(kind)
  found = [
    (field.name, of_fields[field.name], _default(field), meanings.get(field.name, ""))
    for field in dataclasses.fields(kind)
    if annotations.is_key(field)
  ]
  # Keys that others bring along, by names that stand for all such; an annotation holds what each is.
  for name, annotation in getattr(kind, "EXTRA", {}).items():
    meaning = next((marker for marker in annotations.split(annotation)[1] if isinstance(marker, str)), "")
    found.append((name, annotation, "-", meaning))
  return found


def _shared(names: Mapping[type, Sequence[str]]) -> list[_Field]:
  """Returns the fields that all of several dataclasses have alike and that hold no dicts."""
  first, *others = map(_fields, names)
  if not others:
    return []
  return [field for field in first if all(field in other for other in others) and not list(_parts(field[1]))]


def _parent(path: str) -> str:
  above = path.rpartition(".")[0]
  return f"{above}." if above else ""


def _about(kind: type) -> str:
  about = words.first_sentence(kind)
  return f"{about}." if about else ""


def _identity(section: Any) -> Any:
  return (section.key, frozenset(section.kinds.values())) if isinstance(section, OneOf) else section


def _members(annotation: Any) -> Iterator[Any]:
  """Yields what an annotation is made of, unions, lists and dicts taken apart, with its markers."""
  base, _ = annotations.split(annotation)
  yield annotation
  inner = (
    typing.get_args(base) if typing.get_origin(base) in (typing.Union, builtin_types.UnionType, tuple, dict) else ()
  )
  for each in inner:
    if each is not Ellipsis:
      yield from _members(each)


def _parts(annotation: Any) -> Iterator[Any]:
  """Yields the dataclasses, and choices of them, that stand in an annotation."""
  found = set()
  for member in _members(annotation):
    base, markers = annotations.split(member)
    for part in [m for m in markers if isinstance(m, OneOf)] or ([base] if dataclasses.is_dataclass(base) else []):
      if part is not Duration and _identity(part) not in found:
        found.add(_identity(part))
        yield part


def _is_by_name(annotation: Any) -> bool:
  return any(typing.get_origin(annotations.split(member)[0]) is dict for member in _members(annotation))


def _spelled(name: str, annotation: Any) -> str:
  if not annotations.is_duration(annotation):
    return name
  units = annotations.units_of(annotation)
  return f"{name}_{{{','.join(units)}}}" if len(units) > 1 else f"{name}_{units[0]}"


def _kind(annotation: Any) -> str:
  none = " or None" if annotations.may_be_none(annotation) else ""
  if annotations.is_duration(annotation):
    return f"a duration{none}"
  chosen = [m for m in annotations.split(annotation)[1] if isinstance(m, OneOf)]
  return f"a dict{none}" if chosen else words.describe(annotation).replace("text that is not empty", "text")


def _default(field: dataclasses.Field) -> str:
  """Returns a field's default as a config would have it."""
  factory = field.default_factory
  value = field.default if factory is dataclasses.MISSING else factory()
  if value is dataclasses.MISSING:
    needs_none = any(isinstance(part, OneOf) and part.beside for part in _parts_of(field))
    return "{}" if needs_none else ""
  if isinstance(value, Duration):
    return f"{value.value:g} {value.unit}"
  if dataclasses.is_dataclass(value):
    unlike = [f for f in dataclasses.fields(value) if f.init and getattr(value, f.name) != f.default]
    return repr({f.name: getattr(value, f.name) for f in unlike if f.default_factory is dataclasses.MISSING})
  return repr(list(value) if isinstance(value, tuple) else value)


def _parts_of(field: dataclasses.Field) -> list[Any]:
  return [] if isinstance(field.type, str) else list(_parts(field.type))


def _wrapped(text: str, indent: str) -> list[str]:
  return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _with_section(kind: str, title: str) -> str:
  return f"{kind}: {title}" if title else kind


def _anchor(title: str) -> str:
  """Returns what a heading is linked by, as GitHub and most others make it."""
  return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _link(title: str) -> str:
  return f"[{title}](#{_anchor(title)})"


def _choice(names: Sequence[str], title: str) -> str:
  shown = " or ".join(f"`{name}`" for name in names)
  return f"- [{shown}](#{_anchor(title)})" if title else f"- {shown}"


def _row(key: Key) -> str:
  kind = f"{key.kind}: {_link(key.section)}" if key.section else key.kind
  meaning = key.meaning[:1].upper() + key.meaning[1:]
  default = "" if key.default == "-" else f"`{key.default}`" if key.default else "*required*"
  cells = (f"`{key.name}`", kind, default, meaning)
  return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
