"""A config of big_vision as one of ours: every key goes where its rule sends it, and what became of it is told."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from tools.port_config import rules
from tools.port_config.rule import DROP, IDLE, KEPT, OTHER, REFUSED, RENAMED, Patterns, Rule, Said, Unportable, filled

PROJECTS = Path(__file__).parents[2] / "projects"


class Port:
  """The config that is made, and what is told of it.

  Attributes:
    config: the config of big_vision, dicts, lists and scalars.
    project: the project here that trains it.
    path: of the key that a rule is being applied to.
    out: the config here.
    said: what became of each key, in the order of the config.
  """

  def __init__(self, config: Mapping[str, Any]):
    self.config = config
    self.project = project_of(config)
    self.path: tuple[str, ...] = ()
    self.out: dict[str, Any] = {}
    self.said: list[Said] = []

  @property
  def teachers(self) -> Sequence[str]:
    """The names of the teachers of a distillation."""
    return self.config.get("teachers", ())

  @property
  def distilled(self) -> bool:
    """Whether a student learns from teachers."""
    return "teachers" in self.config

  @property
  def contrastive(self) -> bool:
    """Whether images are compared with texts."""
    return self.project in ("lit", "siglip", "clippo")

  def tell(self, verdict: str, there: str, here: str, said: str) -> None:
    """Adds a row to what is told, once."""
    row = Said(verdict, there, here, said)
    if row not in self.said:
      self.said.append(row)

  def tell_idle(self, key: str, why: str) -> None:
    """Tells that a part of the key that is being ported has no effect."""
    self.tell(IDLE, f"{'.'.join(self.path)}.{key}", "", why)

  def tell_renamed(self, key: str, here: str) -> None:
    """Tells that a part of the key that is being ported is called otherwise."""
    self.tell(RENAMED, f"{'.'.join(self.path)}.{key}", f"{'.'.join(self.path)}.{here}", "")

  def tell_op(self, name: str) -> None:
    """Tells what the table of pp ops says of one."""
    rule = next(rule for rule in rules.OPS_TOLD if rule.there == name)
    self.tell(
      rule.verdict, f"{'.'.join(self.path)}: {rule.there}", "" if rule.verdict == IDLE else rule.here, rule.said
    )

  def family(self, name: str) -> str:
    """Returns what a model is called here.

    Raises:
      Unportable: there is no such model.
    """
    rule = next((rule for rule in rules.MODELS if rule.there == name), None)
    if rule is None:
      raise Unportable(f"there is no model {name!r} here")
    return rule.place

  def evaluator(self, name: str) -> str:
    """Returns what an evaluator is called here."""
    return next(rule.place for rule in rules.EVALUATORS if rule.there == name)

  def options(self, family: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a model, and of the towers in it."""
    found: dict[str, Any] = {}
    for option, value in given.items():
      rule = rules.OPTIONS.get((family, option))
      if rule is not None:
        self.tell(rule.verdict, f"{'.'.join(self.path)}.{option}", "", rule.said)
      elif option in ("image_model", "text_model"):
        found[option] = self.family(value)
      elif option in ("image", "text"):
        default = "vit" if option == "image" else "proj.image_text.text_transformer"
        found[option] = self.options(given.get(f"{option}_model", default), value or {})
      elif value is not None:
        found[option] = tuple(value) if isinstance(value, list) else value
    for (of, option), rule in rules.OPTIONS.items():
      if of == family and rule.absent is not None and (value := rule.absent(self, {})) is not DROP:
        found[option] = value
        self.tell(OTHER, f"no {'.'.join(self.path)}.{option}", f"{option} = {value!r}", rule.said)
    return found

  def get(self, path: Sequence[str]) -> Any:
    """Returns what was written at a path; None where nothing was."""
    node: Any = self.out
    for key in path:
      node = node.get(key) if isinstance(node, Mapping) else None
    return node

  def put(self, path: Sequence[str], value: Any) -> None:
    """Writes a value; what stands there already, from a key of the newer name, stays."""
    node = self.out
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node.setdefault(path[-1], value)


def port(config: Mapping[str, Any]) -> Port:
  """Returns a config of big_vision as one of ours.

  Raises:
    UserError: it is of a project that is not here.
  """
  made = Port(config)
  config = made.config = _with_plain_names(made, config)
  data = config.get("input", {}).get("data", {}) if isinstance(config.get("input"), Mapping) else {}
  parts = () if isinstance(data.get("name"), str) or not isinstance(data, Mapping) else tuple(data)
  patterns = Patterns(rules.KEYS, {"TEACHER": ("student", *made.teachers), "PART": parts})
  for key, value in config.items():
    _walk(made, patterns, (key,), value)
  for row in made.said:  # What is left of an evaluation of which a part is refused would be another one.
    if row.verdict == REFUSED and row.there.startswith("evals."):
      made.out.get("evals", {}).pop(row.there.split(".")[1], None)
  _fill(made, {"NAME": tuple(made.out.get("evals", {})), "PART": parts, "UNIT": ("steps",)})
  return made


def _with_plain_names(made: Port, config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns a config whose evaluations have names that can be those of folders; their metrics keep the old ones."""
  evals = config.get("evals")
  if not isinstance(evals, Mapping) or not any("/" in name or name.startswith(".") for name in evals):
    return config
  found = {}
  for name, entry in evals.items():
    plain = name.replace("/", "_").lstrip(".")
    if plain != name:
      made.tell(RENAMED, f"evals.{name}", f"evals.{plain}", "an evaluation's name is that of a folder, too")
      entry = {"type": name, "prefix": f"{name}/", **entry}
    found[plain] = entry
  return {**config, "evals": found}


def _walk(made: Port, patterns: Patterns, path: tuple[str, ...], value: Any) -> None:
  made.path = path
  if path[0] == "evals" and len(path) == 2 and not _evaluator_is_there(made, value):
    return
  found = patterns.find(path)
  if found is not None:
    _apply(made, *found, value)
  elif isinstance(value, Mapping) and patterns.below(path):
    for key, each in value.items():
      _walk(made, patterns, (*path, key), each)
  elif path[0] == "evals" and len(path) > 2:  # An evaluator's own option: ours judges it when the result is read.
    made.put(path, value)
    made.tell(KEPT, ".".join(path), ".".join(path), "")
  else:
    made.tell(IDLE, ".".join(path), "", rules.UNKNOWN)


def _evaluator_is_there(made: Port, entry: Mapping[str, Any]) -> bool:
  """Tells whether an evaluation has an evaluator here; of one that has none, why."""
  kind = entry.get("type", made.path[1])
  rule = next((rule for rule in rules.EVALUATORS if rule.there == kind), None)
  if rule is not None and rule.place:
    return True
  verdict, said = (REFUSED, f"there is no evaluator {kind!r} here") if rule is None else (rule.verdict, rule.said)
  made.tell(verdict, ".".join(made.path), "", f"{kind}: {said}" if rule else said)
  return False


def _apply(made: Port, rule: Rule, names: Mapping[str, str], value: Any) -> None:
  there = ".".join(made.path)
  here = filled(rule.place, names) if rule.place else ()
  said = rule.said
  try:
    found = value if rule.to is None else rule.to(value, made)
  except (Unportable, KeyError, TypeError, AttributeError, ValueError) as error:
    reason = str(error) if isinstance(error, Unportable) else f"it is not of the form that is known ({error!r})"
    made.tell(REFUSED, there, "", reason)
    return
  if not here or found is DROP:
    made.tell(IDLE if rule.verdict in (KEPT, RENAMED) else rule.verdict, there, "", said or rules.AS_IF_ABSENT)
    return
  made.put(here, found)
  verdict = rule.verdict
  if verdict == RENAMED and here == made.path:  # Of a value, which may have the same name here.
    verdict = KEPT if found == value else RENAMED
    there, here_text = (f"{there} = {_shown(value)}", _shown(found)) if found != value else (there, "")
  else:
    here_text = "" if here == made.path else ".".join(here)
  made.tell(verdict, there, here_text, said)


def _fill(made: Port, names: Mapping[str, Sequence[str]]) -> None:
  """Writes what a missing key means there and would not mean here."""
  for rule in rules.KEYS:
    if rule.absent is None:
      continue
    wild = next((word for word in ("NAME", "PART") if word in _key(rule).split(".")), "UNIT")
    for name in names[wild]:
      here = filled(rule.here or _key(rule), {wild: name})
      if made.get(here) is not None or (wild != "UNIT" and made.get(here[:2]) is None):
        continue
      made.path = filled(_key(rule), {wild: name})
      found = rule.absent(made, {wild: name})
      if found is not DROP:
        made.put(here, found)
        made.tell(OTHER, f"no {'.'.join(made.path)}", f"{'.'.join(here)} = {_shown(found)}", rule.said)


def _shown(value: Any) -> str:
  """Returns a value as a row shows it."""
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."


def _key(rule: Rule) -> str:
  return rule.there.removeprefix("no ")


def project_of(config: Mapping[str, Any]) -> str:
  """Returns the project here that trains a config of big_vision, by its keys.

  Raises:
    UserError: it is not here, or no key tells.
  """
  name = config.get("model_name") or config.get("student_name")
  if not isinstance(name, str):
    raise UserError(
      "config.model_name is missing, and config.student_name too: this is no config of big_vision's trainers"
    )
  project = next((rule.here for rule in rules.PROJECTS if rule.to(config, name)), "")
  if not project and name.startswith(("proj.", "xp.")):
    project = name.split(".")[1]
  known = sorted(path.parent.name for path in PROJECTS.glob("*/train.py"))
  if project not in known:
    raise UserError(
      f"config.model_name {name!r} is of the project {project or name!r}, which is not here; "
      f"there are {', '.join(known)}"
    )
  return project


def counted(said: Sequence[Said]) -> list[tuple[Said, int]]:
  """Returns the rows with how many of one kind there are: those of several evaluations are one, `evals.*.cache`."""
  found: dict[Said, int] = {}
  for row in said:
    generic = dataclasses.replace(row, there=_generic(row.there), here=_generic(row.here))
    found[generic] = found.get(generic, 0) + 1
  return list(found.items())


def _generic(path: str) -> str:
  prefix = "no " if path.startswith("no ") else ""
  head, equals, value = path.removeprefix("no ").partition(" = ")
  tokens = head.split(".")
  if tokens[0] == "evals" and len(tokens) > 1:
    tokens[1] = "*"
  return re.sub(r"(seqhw=|student_|predict_)\d+", r"\1N", prefix + ".".join(tokens) + equals + value)
