"""Opens the source that a config's `data` names."""

import importlib
import weakref

from core.data import filters
from core.data.columns import Columns
from core.data.tfrecord import Records
from core.errors import UserError
from core.recipe.input import Component
from core.recipe.sources import SOURCES, AnySource

Source = Columns | Records

_MODULES = {kind: f"core.data.sources.{name}" for name, kind in SOURCES.items()}

_opened: weakref.WeakKeyDictionary[Component, Source] = weakref.WeakKeyDictionary()


def open_source(data: AnySource, where: str) -> Source:
  """Returns the records of a source.

  Args:
    data: the source's arguments, as `core.recipe.sources` has them.
    where: their path in the config, "config.input.data", for messages.

  Raises:
    UserError: whatever the source refuses, and memory that does not hold it.
  """
  try:
    return importlib.import_module(_MODULES[type(data)]).read(data, where)
  except MemoryError as error:
    raise UserError(f"{where}: memory does not hold it ({str(error) or 'no more is there'})") from None


def of_component(component: Component) -> Source:
  """Returns the records of a component of the input, which are opened when they are first asked for.

  Raises:
    UserError: as `open_source`.
  """
  if component not in _opened:
    source = open_source(component.data, f"{component.key}.data")
    if condition := component.pre_filter_fn:
      source = filters.filtered(source, condition, component.pre_filter_fn_key, skip_errors=component.skip_errors)
    _opened[component] = source
  return _opened[component]


def check_alike(specs: dict[str, dict[str, tuple[str, list[int | None] | None]]]) -> None:
  """Refuses components of a mixture whose examples differ in keys, types or shapes.

  Args:
    specs: of each component, by its path in the config: what its examples hold, `{key: (type, shape)}`.

  Raises:
    UserError: they differ; the line names the first key.
  """
  (first, spec), *others = specs.items()
  for key, other in others:
    for name in sorted(spec.keys() | other.keys()):
      if spec.get(name) != other.get(name):
        a, b = (f"{s[name][0]} {s[name][1]}" if name in s else "missing" for s in (spec, other))
        raise UserError(f"{key}: the examples of a mixture must be alike: {name!r} is {b} here, {a} in {first}")
