"""Class names and the prompts that they are put into, for zero-shot classification.

`class_names/` holds a file a data set, `{"classes": [...]}` in the order of its labels, and `templates.json`, sets of
templates by name: those of CLIP (Radford et al. 2021) for its data sets, `imagenet_best` being the seven that serve
ImageNet best, and `name`, the class's name alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core import data_files, files, text_lines
from core.errors import UserError, first_few, nearest
from core.pp import text as text_lib
from core.recipe import words

Classes = tuple[tuple[str, ...], ...]  # Each class by one name or several.

_FOLDER = data_files.find("core/evaluators/class_names")
_TEMPLATES = "templates"


def known_classes() -> list[str]:
  """Returns the data sets whose class names are here."""
  return sorted(path.stem for path in _FOLDER.glob("*.json") if path.stem != _TEMPLATES)


def read_classes(given: Any, where: str) -> Classes:
  """Returns the classes in the order of their labels.

  Args:
    given: one of `known_classes()`; a file: text with a name a line, JSON with a list or `{"classes": [...]}`; or the
      list itself. In a list a class is a name, or a list of names, which count alike. Names may occur twice, as two of
      ImageNet's do.
    where: the config's key, for messages.

  Raises:
    UserError: no such file, no list of names, or an empty name.
  """
  found = given
  if isinstance(given, str):
    file = _FOLDER / f"{given}.json"
    found = _read_file(file if given in known_classes() else given, where, known_classes())
    found = found.get("classes") if isinstance(found, dict) else found
  if not _is_list(found) or not found:
    line = f"{where} must be a list of names, a file of them, or one of {', '.join(known_classes())}"
    raise UserError(line)
  classes = tuple((each,) if isinstance(each, str) else tuple(each) if _is_list(each) else () for each in found)
  for number, names in enumerate(classes):
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
      raise UserError(f"{where}: class {number} is {words.shown(found[number])}, which is no name")
  return classes


def read_templates(given: Any, where: str) -> tuple[str, ...]:
  """Returns templates, each with a `{}` in the place of the class's name.

  Args:
    given: the name of a set in `templates.json`; one template; a file: text with one a line, or JSON with a list; or
      the list itself.
    where: the config's key, for messages.

  Raises:
    UserError: no such file, no template, or one without the place of the name.
  """
  known = json.loads((_FOLDER / f"{_TEMPLATES}.json").read_text("utf-8"))
  if isinstance(given, str):
    found = known[given] if given in known else [given] if "{}" in given else _read_file(given, where, known)
  else:
    found = given
  if not _is_list(found) or not found or not all(isinstance(each, str) for each in found):
    line = f"{where} must be a list like ['a photo of a {{}}.'], a file of them, or {words.choices(known)}"
    raise UserError(line)
  for template in found:
    if template.count("{}") != 1:
      raise UserError(f"{where}: {words.shown(template)} must have one {{}}, the place of the class's name")
  return tuple(found)


def write(
  classes: Classes, templates: Sequence[str], *, canonicalize: bool = False
) -> tuple[list[str], Int[np.ndarray, "prompts"]]:
  """Returns every name of every class in every template, and of which class each prompt is.

  Args:
    classes: see `read_classes`.
    templates: see `read_templates`.
    canonicalize: lower-case and without punctuation, as SigLIP was trained.
  """
  found = [(t.replace("{}", name), number) for number, names in enumerate(classes) for name in names for t in templates]
  texts = [text_lib.canonicalize(text) if canonicalize else text for text, _ in found]
  return texts, np.array([number for _, number in found], np.int64)


def ensemble(
  embeddings: Float[np.ndarray, "prompts dim"], class_of: Int[np.ndarray, "prompts"]
) -> Float[np.ndarray, "classes dim"]:
  """Returns one embedding a class: the mean over its prompts, each of unit length, brought to unit length.

  Args:
    embeddings: of the prompts, of any length above 0.
    class_of: the class of each, 0, 1, ... without a gap.
  """
  units = _unit(np.asarray(embeddings, np.float64))
  sums = np.zeros((class_of.max() + 1, units.shape[1]))
  np.add.at(sums, class_of, units)
  return _unit(sums).astype(np.float32)


def _unit(x: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _is_list(value: Any) -> bool:
  return isinstance(value, Sequence) and not isinstance(value, str)


def _read_file(name: str | Path, where: str, known: Any) -> Any:
  """Returns the lines of a text file, or what a JSON file holds."""
  try:
    path = name if isinstance(name, Path) else files.local(name, where)
    is_file = path.is_file()
  except (UserError, OSError, RuntimeError, ValueError):  # A name that is too long, or of the home of nobody.
    is_file = False
  if not is_file:
    raise UserError(f"{where}: {words.shown(str(name))} is no file and no name{nearest(str(name), known)}")
  if path.suffix != ".json":
    return text_lines.read_filled(path, where)
  text = "\n".join(text_lines.read(path, where))
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    line = f"{where}: {path} is not JSON ({first_few(str(error).splitlines(), shown=1, rest='')})"
    raise UserError(line) from None
