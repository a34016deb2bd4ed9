"""What a run's first lines say of its data: the classes, and evaluations of what is trained on."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from core import files
from core.data.source import of_component
from core.errors import UserError, cut
from core.recipe import sources
from core.recipe.evaluators import Sharpness
from core.recipe.evaluators_transfer import TransferDataset
from core.recipe.input import Input

_LONGEST_NAME = 30
# The arguments that tell which records a source has; the others tell which of them and how they are seen.
OF_RECORDS = {
  sources.Arrays: ("path", "columns"),
  sources.DigitCaptions: ("digits", "examples", "held_out"),
  sources.Digits: (),
  sources.Folder: ("path",),
  sources.Fractals: ("classes", "per_class", "size", "seed"),
  sources.Jsonl: ("path",),
  sources.Tfds: ("name", "data_dir"),
  sources.Zeros: ("spec", "examples"),
}


def classes(recipe: Input) -> str:
  """Returns how many classes the input has, and its first and last by name: `3 classes, ant to cow`.

  Empty where no source of the input knows its classes.
  """
  names = [of_component(component).classes for component in recipe.components]
  return "; ".join(dict.fromkeys(_described(each) for each in names if each))


def overlaps(recipe: Input, evals: Mapping[str, Any]) -> list[str]:
  """Returns a line for each evaluation that tests on examples of the training split, by the config's ranges.

  `sharpness` is left out, which is of the training loss, and of few-shot and nearest neighbours the train splits.
  """
  found = []
  for name, options in evals.items():
    for data in _tested(options):
      shared, size = _shared(recipe, data)
      if shared:
        found.append(f"config.evals.{name} tests on {data.split}: {shared:,} of {size:,} examples are trained on")
  return found


def _described(names: tuple[str, ...]) -> str:
  first, last = (cut(name, _LONGEST_NAME) for name in (names[0], names[-1]))
  return f"{len(names):,} classes, {first} to {last}" if len(names) > 1 else f"1 class, {first}"


def _tested(options: Any) -> Iterator[Any]:
  """Yields the sources that an evaluation tests on."""
  if isinstance(options, Sharpness):
    return
  datasets = getattr(options, "datasets", {}).values()
  transfers = [each for each in datasets if isinstance(each, TransferDataset)]
  for each in [each.test for each in transfers] or sources.sources_in(options):
    yield from sources.sources_in(each)


def _shared(recipe: Input, data: Any) -> tuple[int, int]:
  """Returns how many records of a source are trained on, and how many it has; 0 and 0 where it is another's."""
  covered: list[np.ndarray] = []
  for component in recipe.components:
    pieces = of_component(component).pieces
    if pieces is None or not _same_records(component.data, data):
      continue
    try:
      tested = pieces(data.split)
    except UserError:  # A split that training does not read; the evaluation opens it, and says what is wrong with it.
      continue
    covered = covered or [np.zeros(high - low, bool) for _, low, high in tested]
    for rows, (name, low, high) in zip(covered, tested):
      for other, first, last in pieces(component.data.split):
        if other == name:
          rows[max(first - low, 0) : max(min(last, high) - low, 0)] = True
  return sum(int(rows.sum()) for rows in covered), sum(map(len, covered))


def _same_records(one: Any, other: Any) -> bool:
  if type(one) is not type(other):
    return False
  given = [[getattr(each, key) for key in OF_RECORDS[type(one)]] for each in (one, other)]
  return all(a is b or (not isinstance(a, dict) and _found(a) == _found(b)) for a, b in zip(*given))


def _found(value: Any) -> Any:
  """Returns a path as the file that it names; other values as they are."""
  return str(files.from_here(value)) if isinstance(value, str) else value
