"""Reads towers, and the temperature and bias beside them, out of one file or of a file each."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from core import trees
from core.checkpoint import big_vision, catalog, pretrained, state_dict
from core.errors import UserError, first_few, naming, nearest
from core.models import weights
from core.recipe.models.load import Load
from core.recipe.models.options import ModelOptions

# What a config may call a file in a dict of them, and the name of that part of the parameters.
_PARTS = {"image": "img", "text": "txt", "temperature": "t", "bias": "b"}
_SCALARS = ("t", "b")
_WHAT = {"t": "temperature", "b": "bias"}


@dataclasses.dataclass(frozen=True)
class Tower:
  """How a tower is loaded.

  Attributes:
    load: of its model, `load(init_params, init_file, options, dont_load)`.
    options: of its model.
    kw: what its own section of the config says.
  """

  load: Callable[..., Any]
  options: ModelOptions | None
  kw: Load


def load(
  family: str,
  init_params: Any,
  init_file: str | Mapping[str, str],
  towers: Mapping[str, Tower],
  dont_load: Sequence[str] | str,
) -> dict[str, Any]:
  """Returns the parameters of a model of towers: those of the files, and of `init_params` where these have none.

  Args:
    family: in `core.checkpoint.catalog`.
    init_params: the fresh parameters, `{"img": .., "txt": .., "t": .., "b": ..}`.
    init_file: one file of all, or a dict of files by part.
    towers: by the name of that part.
    dont_load: regexes over the names of all parameters.

  Raises:
    UserError: an unreadable file, one of another model, or a regex that matches nothing.
  """
  dont_load = weights.patterns(dont_load)
  if isinstance(init_file, Mapping):
    files, held = _files_of_parts(init_file, init_params), []
  else:
    files, held = _files_of_whole(family, init_file, init_params, dont_load)
  _check_patterns(dont_load, init_params, held, [tower for tower in files if tower in towers])
  params = dict(init_params)
  for part, file in files.items():
    with naming(_named(part, init_file)):
      if part in towers:
        params[part] = _load_tower(part, towers[part], init_params[part], file, dont_load)
      elif trees.first_match(part, dont_load) is None:
        params[part] = _read_scalar(family, part, file, init_params[part])
  return params


def _check_patterns(dont_load: Sequence[str], init_params: Any, held: Sequence[str], towers: Sequence[str]) -> None:
  """Refuses regexes that match no part, no parameter of the model and none of the file.

  A regex that begins with the name of a tower which is loaded is left to the tower, which knows its file's names.
  """
  names = [*init_params, *(name for name, _ in trees.flatten_with_names(init_params)), *held]
  for pattern in dont_load:
    of_tower = any(pattern.startswith(f"{tower}/") for tower in towers)
    if not of_tower and not any(re.fullmatch(pattern, name) for name in names):
      raise weights.UnmatchedError(pattern, dict.fromkeys(names))


def _load_tower(part: str, tower: Tower, init: Any, file: str, dont_load: Sequence[str]) -> Any:
  own, within = tower.kw.dont_load, _within(part, dont_load, init)
  try:
    return tower.load(init, file, tower.options, (*own, *within))
  except weights.UnmatchedError as error:  # The tower does not know where in the config its own options stand.
    names = [name for name, _ in trees.flatten_with_names(init)]
    if error.pattern in own:
      raise weights.UnmatchedError(error.pattern, names, f"config.model_load.{part}_load_kw.dont_load") from None
    raise weights.UnmatchedError(f"{part}/{error.pattern}", [f"{part}/{name}" for name in names]) from None
  except UserError as error:
    option = f"model_load.{part}_load_kw.dont_load"
    raise UserError(str(error).replace("model_load.dont_load", option)) from None


def _named(part: str, init_file: str | Mapping[str, str]) -> str:
  """Returns what a part is to the config's author: the key of its own file, or its name in the file of all."""
  if isinstance(init_file, str):
    return part
  return next(f"config.model_init.{key}" for key, file in init_file.items() if file and _PARTS.get(key, key) == part)


def _within(part: str, dont_load: Sequence[str], init: Any) -> list[str]:
  """Returns regexes over the names within a tower for those over the names of all parameters."""
  prefix = f"{part}/"
  inside = [pattern.removeprefix(prefix) for pattern in dont_load if pattern.startswith(prefix)]
  names = (name for name, _ in trees.flatten_with_names(init))
  # Patterns that begin otherwise ("(img|txt)/head/.*") by what they match here.
  return inside + [re.escape(name) for name in names if trees.first_match(prefix + name, dont_load) is not None]


def _files_of_parts(init_file: Mapping[str, str], init_params: Any) -> dict[str, str]:
  """Returns the files by the names of parts, those that are None left out."""
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


def _files_of_whole(
  family: str, init_file: str, init_params: Any, dont_load: Sequence[str]
) -> tuple[dict[str, str], Sequence[str]]:
  """Returns the file of each part of the model, all of them parts of one, and the names of what that holds."""
  location = big_vision.settled(catalog.locate(family, init_file))
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
  files = {}
  for part in init_params:
    if part in skipped:
      continue
    # Of a foreign file each tower takes its own.
    files[part] = location if foreign or part in _SCALARS else f"{place}:{subtree}{part}"
  return files, [*roots, *names]


def _read_scalar(family: str, name: str, file: str, init: Any) -> np.ndarray:
  """Returns the temperature or the bias, of a file that may hold towers too.

  Raises:
    UserError: it holds none, or no single number.
  """
  location = catalog.locate(family, file)
  place, subtree = pretrained.split(location)
  if state_dict.is_one(place):
    held = weights.read_file(family, location)
  else:
    subtree = "" if subtree == name else subtree.removesuffix(f"/{name}")
    held = pretrained.load_some(f"{place}:{subtree}" if subtree else place, [name])
  if name not in held:
    raise UserError(f"{file}: holds no {_WHAT[name]} {name}")
  value = np.asarray(held[name], init.dtype)
  if value.size != 1:
    raise UserError(f"{file}: its {_WHAT[name]} {name} is {list(value.shape)} numbers, not one")
  return value.reshape(init.shape)
