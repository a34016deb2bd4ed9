"""What a config needs to say: the entries that are not what our recipe has anyway."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from core.errors import UserError
from core.recipe.evaluators import Evaluator
from core.recipe.parse import parse
from core.recipe.write import to_config

# Said even where it is the default: people ask for it.
_ALWAYS = ("loss", "seed", "type")
_WHOLE = ("data", "evals")  # Nothing within is left out.


def without_defaults(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config without what the recipe `kind` has by default.

  Raises:
    UserError: the config is none of the recipe's.
  """
  parse(kind, config)
  evals = {
    name: _reduced(entry, lambda value: to_config(parse(Evaluator, value, "config.evals")))
    for name, entry in config.get("evals", {}).items()
  }
  rest = _reduced(
    {key: each for key, each in config.items() if key != "evals"}, lambda value: to_config(parse(kind, value))
  )
  return {**rest, **({"evals": evals} if evals else {})}


def _reduced(config: Mapping[str, Any], read: Callable[[Any], Any]) -> dict[str, Any]:
  found, whole = dict(config), read(config)
  for path in _paths(config):
    fewer = _without(found, path)
    try:
      if fewer != found and read(fewer) == whole:
        found = fewer
    except UserError:  # It must be given.
      pass
  return found


def _paths(config: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
  for key, value in config.items():
    if key in _ALWAYS or key in _WHOLE:
      continue
    yield (*above, key)
    if isinstance(value, Mapping):
      yield from _paths(value, (*above, key))


def _without(config: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
  first, *rest = path
  if first not in config:
    return dict(config)
  if not rest:
    return {key: value for key, value in config.items() if key != first}
  return {key: _without(value, tuple(rest)) if key == first else value for key, value in config.items()}
