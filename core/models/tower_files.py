"""Reads towers, and the temperature and bias beside them, out of one file or of a file each."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core import trees
from core.checkpoint import catalog, pretrained, state_dict
from core.errors import UserError, first_few, nearest
from core.models import weights

# What a config may call a file in a dict of them, and the name of that part of the parameters.
_PARTS = {"image": "img", "text": "txt", "temperature": "t", "bias": "b"}
_SCALARS = ("t", "b")
_WHAT = {"t": "temperature", "b": "bias"}


def load(
  family: str,
  init_params: Any,
  init_file: str | Mapping[str, str],
  loaders: Mapping[str, Callable[..., Any]],
  configs: Mapping[str, Any],
  dont_load: Sequence[str],
  load_kw: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
  """The parameters of a model of towers: those of the files, and of `init_params` where these leave something out.

  Args:
    family: in `core.checkpoint.catalog`.
    init_params: the fresh parameters, `{"img": .., "txt": .., "t": .., "b": ..}`.
    init_file: one file of all, or a dict of files by part.
    loaders, configs, load_kw: of each tower, its `load`, its model's options, and more arguments of `load`.
    dont_load: regexes over the names of all parameters.

  Raises:
    UserError: an unreadable file, or one of another model.
  """
  dont_load = [dont_load] if isinstance(dont_load, str) else list(dont_load)
  if isinstance(init_file, Mapping):
    files = _files_of_parts(init_file, init_params)
  else:
    files = _files_of_whole(family, init_file, init_params, dont_load)
  params = dict(init_params)
  for tower, file in files.items():
    if tower in loaders:
      own = dict(load_kw[tower])
      own["dont_load"] = [*own.get("dont_load", ()), *_within(tower, dont_load, init_params[tower])]
      params[tower] = _load_tower(tower, loaders[tower], init_params[tower], file, configs[tower], own)
    elif trees.first_match(tower, dont_load) is None:
      params[tower] = _read_scalar(family, tower, file, init_params[tower])
  return params


def _load_tower(tower: str, loader: Callable[..., Any], init: Any, file: str, config: Any, load_kw: Any) -> Any:
  try:
    return loader(init, file, config, **load_kw)
  except UserError as error:  # The tower does not know where in the config its own options stand.
    option = f"model_load.{tower}_load_kw.dont_load"
    raise UserError(f"{tower}: {str(error).replace('model_load.dont_load', option)}") from None


def _within(tower: str, dont_load: Sequence[str], init: Any) -> list[str]:
  """Regexes over the names within a tower for those over the names of all parameters."""
  prefix = f"{tower}/"
  inside = [pattern.removeprefix(prefix) for pattern in dont_load if pattern.startswith(prefix)]
  names = (name for name, _ in trees.flatten_with_names(init))
  # Patterns that begin otherwise ("(img|txt)/head/.*") by what they match here.
  return inside + [re.escape(name) for name in names if trees.first_match(prefix + name, dont_load) is not None]


def _files_of_parts(init_file: Mapping[str, str], init_params: Any) -> dict[str, str]:
  """The files by the names of parts, those that are None left out."""
  known = [*_PARTS, *_PARTS.values()]
  files = {}
  for key, file in init_file.items():
    if key not in known:
      raise UserError(f"config.model_init.{key} is no part of this model{nearest(str(key), known)}")
    part = _PARTS.get(key, key)
    if part in files:
      raise UserError(f"config.model_init has {part!r} twice: under {key!r} and another name")
    if part not in init_params:
      remedy = "; set model.bias_init" if part == "b" else ""
      raise UserError(f"config.model_init.{key}: the model has no {part!r}{remedy}")
    files[part] = file
  return {part: file for part, file in files.items() if file}


def _files_of_whole(family: str, init_file: str, init_params: Any, dont_load: Sequence[str]) -> dict[str, str]:
  """The file of each part of the model, all of them parts of one."""
  location = catalog.locate(family, init_file)
  foreign = state_dict.is_one(location)
  names = weights.read_file(family, location) if foreign else pretrained.names(location)
  roots = {name.partition("/")[0] for name in names}
  skipped = {part for part in {*roots, *init_params} if trees.first_match(part, dont_load) is not None}
  missing, surplus = sorted(init_params.keys() - roots - skipped), sorted(roots - init_params.keys() - skipped)
  if missing == ["b"] and not surplus:
    raise UserError(
      f"{init_file}: it has no bias b, as a model trained with a softmax; set model.bias_init=None, or "
      "model_load.dont_load=['b'] to keep the model's own"
    )
  if surplus == ["b"] and not missing:
    raise UserError(
      f"{init_file}: it has a bias b, as a model trained with a sigmoid; set model.bias_init=-10.0, or "
      "model_load.dont_load=['b'] to leave it out"
    )
  told = [f"{what} {first_few(parts)}" for what, parts in (("it lacks", missing), ("it has besides", surplus)) if parts]
  if told:
    raise UserError(f"{init_file}: not a file of {', '.join(init_params)}: {'; '.join(told)}")
  place, subtree = pretrained.split(location)
  subtree = f"{subtree}/" if subtree else ""
  # Of a foreign file each tower takes its own.
  of_tower = lambda part: location if foreign or part in _SCALARS else f"{place}:{subtree}{part}"
  return {part: of_tower(part) for part in init_params if part not in skipped}


def _read_scalar(family: str, name: str, file: str, init: Any) -> np.ndarray:
  """The temperature or the bias, of a file that may hold towers too.

  Raises:
    UserError: it holds none, or no single number.
  """
  place, subtree = pretrained.split(catalog.locate(family, file))
  if state_dict.is_one(place):
    held = weights.read_file(family, place)
  else:
    subtree = "" if subtree == name else subtree.removesuffix(f"/{name}")
    held = pretrained.load_some(f"{place}:{subtree}" if subtree else place, [name])
  if name not in held:
    raise UserError(f"{file}: holds no {_WHAT[name]} {name}")
  value = np.asarray(held[name], init.dtype)
  if value.size != 1:
    raise UserError(f"{file}: its {_WHAT[name]} {name} is {list(value.shape)} numbers, not one")
  return value.reshape(init.shape)
