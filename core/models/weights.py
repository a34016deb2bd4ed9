"""Fits published weights to a model: renamed, restacked and resized where the two differ, refused where they must not.

Weights are flat dicts here, `{"Transformer/encoder_norm/bias": array, ...}`.
"""

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from core import trees
from core.checkpoint import catalog, pretrained, remote, state_dict
from core.errors import UserError, first_few
from core.models import grids
from core.models.foreign import registry, table
from core.recipe.models.load import Regexes
from core.recipe.models.options import ModelOptions
from core.recipe.parse import parse

# Options of which no parameter tells.
_COMPARED = ("num_heads", "gelu", "norm_eps", "activation", "alpha")


def read_file(family: str, init_file: str) -> dict[str, np.ndarray]:
  """Returns the parameters in a file, under the flat published names `{"embedding/kernel": array, ...}`.

  Args:
    family: of models, "vit" or "mixer".
    init_file: a short name (`core.checkpoint.catalog`); the location of a published `.npz` (`pretrained.load_params`);
      or that of a file or folder of PyTorch's world (`core.checkpoint.state_dict`), if it holds a model that is known
      (`core.models.foreign`).

  Raises:
    UserError: a file that is not there or not whole, or one of no known model of that family.
  """
  return read_file_and_options(family, init_file)[0]


def read_file_and_options(family: str, init_file: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns what `read_file` does, and what the parameters do not tell of the model.

  Of other libraries' files its options, `{"gelu": "exact"}`; and of all what there is of the grid of patches, see
  `core.models.grids.facts`.
  """
  location = catalog.locate(family, init_file)
  if not state_dict.is_one(location):
    named = dict(trees.flatten_with_names(pretrained.load_params(location)))
    bound = [name for name in (grids.EMBEDDED, grids.MIXED) if name in named]
    noted = pretrained.load_grids(location) if bound else {}
    return named, {"grids": [noted[name] for name in bound if name in noted]}
  location, entry = pretrained.split(location)
  path = remote.fetch(location)
  arrays = state_dict.read(path, entry)
  form = table.recognize(registry.get(family), arrays, source=init_file)
  try:  # A configuration of today may refuse what the names would be read as.
    options, rules = form.options(arrays, state_dict.read_config(path)), form.reading(arrays)
  except UserError as error:
    raise UserError(f"{init_file}: {error}") from None
  return table.to_published(rules, arrays, source=init_file), options


def check_options(wanted: dict[str, Any], options: ModelOptions | None, *, source: str) -> None:
  """Refuses weights whose model computes otherwise than ours, unless the config states that it is to.

  No parameter tells one kind of GELU from another, so weights that want another would load, and give other numbers.
  What the config states is the person's own choice, but for the number of heads.

  Args:
    wanted: what `read_file_and_options` says.
    options: of our model; None for any.
    source: begins the line.

  Raises:
    UserError: names the options to set.
  """
  differ = {}
  for option in _COMPARED if options is not None else ():
    value, ours = wanted.get(option), getattr(options, option, None)
    if value is not None and value != ours and (option == "num_heads" or option not in options.stated):
      differ[option] = value, ours
  if differ:
    told = ", ".join(f"{option}={value!r}, ours {ours!r}" for option, (value, ours) in differ.items())
    remedy = ", ".join(f"model.{option}={value!r}" for option, (value, _) in differ.items())
    keep = ", ".join(f"{option}={ours!r}" for option, (_, ours) in differ.items() if option != "num_heads")
    raise UserError(
      f"{source}: its model has {told}: set {remedy}" + (f", or state {keep} to keep ours" if keep else "")
    )


class UnmatchedError(UserError):
  """A regex of `dont_load` that matches no parameter.

  Args:
    pattern: the regex.
    names: of the parameters.
    where: of the regexes in the config.
  """

  def __init__(self, pattern: str, names: Iterable[str], where: str = "config.model_load.dont_load"):
    nearest = difflib.get_close_matches(pattern, list(names), n=3, cutoff=0.0)
    super().__init__(f"{where}: {pattern!r} matches no parameter (nearest: {', '.join(nearest)})")
    self.pattern = pattern


def patterns(dont_load: Sequence[str] | str) -> tuple[str, ...]:
  """Returns the regexes of `dont_load`.

  Raises:
    UserError: one does not compile.
  """
  return parse(Regexes, dont_load, "config.model_load.dont_load")


def merge(
  loaded: dict[str, Any], init: dict[str, Any], dont_load: Sequence[str], *, source: str, hint: str = ""
) -> dict[str, Any]:
  """Returns the parameters of `loaded` in the dtypes of `init`; what `dont_load` matches keeps its value of `init`.

  `hint` ends the line of an error: what the caller knows of the difference.

  Raises:
    UserError: a regex of `dont_load` that matches nothing; parameters missing in, surplus in, or of another shape in
      `loaded`, of which it names the first few.
  """
  for pattern in dont_load:
    if not any(re.fullmatch(pattern, name) for name in (*init, *loaded)):
      raise UnmatchedError(pattern, dict.fromkeys([*init, *loaded]))
  kept = {name: leaf for name, leaf in init.items() if trees.first_match(name, dont_load) is not None}
  loaded = {name: array for name, array in loaded.items() if trees.first_match(name, dont_load) is None}
  missing = [name for name in init if name not in loaded and name not in kept]
  surplus = [name for name in loaded if name not in init]
  reshaped = [
    f"{name} {tuple(array.shape)} instead of {tuple(init[name].shape)}"
    for name, array in loaded.items()
    if name in init and array.shape != init[name].shape
  ]
  if head := _other_head(loaded, init, missing + surplus + [name.split()[0] for name in reshaped]):
    raise UserError(f"{source}: {head}; model_load.dont_load=['head/.*'] leaves the head out")
  differences = [("it lacks", missing), ("it has besides", surplus), ("of another shape", reshaped)]
  if told := [f"{what} {first_few(names, shown=2)}" for what, names in differences if names]:
    raise UserError(
      f"{source}: not the weights of this model: {'; '.join(told)} (dont_load takes regexes to skip){hint}"
    )
  return kept | {name: np.asarray(array, dtype=init[name].dtype) for name, array in loaded.items()}


def _other_head(loaded: dict[str, Any], init: dict[str, Any], different: Sequence[str]) -> str | None:
  """Returns words for weights that differ from the model in the head alone, as those of another task do."""
  if not different or not all(name.startswith("head/") for name in different):
    return None
  of_file, of_model = (
    f"a head of {each['head/bias'].shape[-1]:,} classes" if "head/bias" in each else "no head"
    for each in (loaded, init)
  )
  return f"it has {of_file}, and the model {of_model} (num_classes)"


def renumber_modules(tree: Any) -> Any:
  """Numbers submodules by class: files from before flax.linen count all of a module's children together.

  `{LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2}` becomes `{LayerNorm_0, MultiHeadDotProductAttention_0,
  LayerNorm_1}`; a tree of today is returned as it is.
  """
  if not isinstance(tree, dict):
    return tree
  numbered = {name: match for name in tree if (match := re.fullmatch(r"(.*)_(\d+)", name))}
  renumbered, counts = {}, defaultdict(int)
  for name in sorted(tree, key=lambda name: int(numbered[name][2]) if name in numbered else -1):
    new_name = name
    if name in numbered:
      module = numbered[name][1]
      new_name = f"{module}_{counts[module]}"
      counts[module] += 1
    renumbered[new_name] = renumber_modules(tree[name])
  return renumbered


def split_heads(loaded: dict[str, Any], init: dict[str, Any]) -> dict[str, Any]:
  """Gives attention kernels and biases of other libraries, `[width, width]`, the axis of heads that `init` has."""
  parameter = re.compile(r"(?:.*/)?MultiHeadDotProductAttention_\d+/(?:query|key|value|out)/(?:kernel|bias)")

  def split(name: str, array: Any) -> Any:
    if name not in init or not parameter.fullmatch(name):
      return array
    shape = init[name].shape
    return array.reshape(shape) if array.ndim < len(shape) and array.size == math.prod(shape) else array

  return {name: split(name, array) for name, array in loaded.items()}


def match_scan(loaded: dict[str, Any], init: dict[str, Any]) -> dict[str, Any]:
  """Stacks the blocks of `loaded` (`encoderblock_0`, ...) or unstacks them (`encoderblock`), as `init` has them."""
  if any(map(trees.is_stacked, init)):
    return _stack_blocks(loaded)
  return _unstack_blocks(loaded)


def _stack_blocks(named: dict[str, Any]) -> dict[str, Any]:
  stacked, blocks = {}, defaultdict(dict)
  for name, array in named.items():
    if match := re.fullmatch(r"(|.*/)encoderblock_(\d+)/(.+)", name):
      blocks[f"{match[1]}encoderblock/{match[3]}"][int(match[2])] = array
    else:
      stacked[name] = array
  for name, by_index in blocks.items():
    arrays = [by_index[i] for i in sorted(by_index)]
    # Blocks that differ are another model's; `merge` will say so.
    stacked[name] = np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays[0]
  return stacked


def _unstack_blocks(named: dict[str, Any]) -> dict[str, Any]:
  unstacked = {}
  for name, array in named.items():
    if (match := re.fullmatch(r"(|.*/)encoderblock/(.+)", name)) and np.ndim(array):
      unstacked.update({f"{match[1]}encoderblock_{i}/{match[2]}": block for i, block in enumerate(array)})
    else:
      unstacked[name] = array
  return unstacked
