"""A model's variables: its parameters, and beside them whatever other Flax collections it has.

`{"params": {...}, "batch_stats": {...}}`; where a task has several models, each collection holds one tree a model:
`{"params": {"student": ..., "prof": ...}, "batch_stats": {"student": ...}}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from core import trees
from core.checkpoint import catalog, pretrained, state_dict
from core.errors import UserError
from core.models import registry
from core.recipe.models.load import Load
from core.recipe.models.options import ModelOptions
from core.state import Variables

Collections = Mapping[str, Any]
Metrics = Mapping[str, jax.Array]


def collections_of(variables: Variables) -> dict[str, Any]:
  """Returns the collections that are no parameters."""
  return {name: tree for name, tree in variables.items() if name != "params"}


def part(variables: Variables, name: str) -> Variables:
  """Returns the variables of one model of several, or of one submodule."""
  return {collection: tree[name] for collection, tree in variables.items() if name in tree}


def joined(parts: Mapping[str, Variables]) -> dict[str, Any]:
  """Returns the variables of several models, of which `part` gives each."""
  found: dict[str, Any] = {"params": {}}
  for name, variables in parts.items():
    for collection, tree in variables.items():
      found.setdefault(collection, {})[name] = tree
  return found


def apply_in_training(model: nn.Module, variables: Variables, *args: Any, **kw: Any) -> tuple[Any, Collections]:
  """Applies a model with `train=True`.

  Returns:
    The model's outputs, and its collections as it updated them; none of a model that has parameters alone.
  """
  names = list(collections_of(variables))
  if not names:
    return model.apply(variables, *args, train=True, **kw), {}
  return model.apply(variables, *args, train=True, mutable=names, **kw)


def result(loss: Float[Array, ""], metrics: Metrics, updated: Collections) -> tuple[Any, ...]:
  """Returns what `Task.loss` is to return: the updated collections stand in it only if there are any."""
  return (loss, metrics, updated) if updated else (loss, metrics)


def load(name: str, init: Variables, init_file: str, options: ModelOptions, how: Load) -> Variables:
  """Returns the variables of a file of weights, fitted to a model of images.

  Args:
    name: the model's, in `core.models.registry`.
    init: its fresh variables, as NumPy arrays.
    init_file: a name, path or URL.
    options: the model's.
    how: what is left out.

  Raises:
    UserError: an unreadable file, or one of another model.
  """
  params = registry.get(name).load(init["params"], init_file, options, **vars(how))
  return {"params": params, **load_collections(name, collections_of(init), init_file, how.dont_load)}


def load_collections(family: str, init: Collections, init_file: str, dont_load: Sequence[str] = ()) -> Collections:
  """Returns the collections of a file of weights; those that it does not hold keep their value of `init`.

  Args:
    family: of models, in `core.checkpoint.catalog`.
    init: the fresh collections of the model, as NumPy arrays.
    init_file: a name, path or URL. A file of another library holds none that are known here.
    dont_load: regexes over names within a collection ("norm/.*") of what keeps its value of `init`.

  Raises:
    UserError: an unreadable file, or a collection of another model.
  """
  if not init:
    return {}
  location = catalog.locate(family, init_file)
  held = {} if state_dict.is_one(location) else pretrained.load_variables(location)

  def fitted(fresh: Any, arrays: Any) -> Any:
    named = dict(trees.flatten_with_names(arrays))
    return trees.map_with_names(lambda name, leaf: _fitted(name, leaf, named, init_file, dont_load), fresh)

  return {name: fitted(fresh, held[name]) if name in held else fresh for name, fresh in init.items()}


def _fitted(name: str, fresh: Any, arrays: Mapping[str, Any], source: str, dont_load: Sequence[str]) -> Any:
  if trees.first_match(name, dont_load) is not None:
    return fresh
  if name not in arrays:
    raise UserError(f"{source}: not the variables of this model: it lacks {name} (dont_load takes regexes to skip)")
  if arrays[name].shape != fresh.shape:
    raise UserError(
      f"{source}: not the variables of this model: {name} {tuple(arrays[name].shape)} instead of {tuple(fresh.shape)} "
      "(dont_load takes regexes to skip)"
    )
  return np.asarray(arrays[name], fresh.dtype)
