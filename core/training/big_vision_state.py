"""A train state from a checkpoint of big_vision: parameters, optimizer state and step go on under this config.

    params/NAME             the parameters; in distillation those of the student alone, who is not named
    opt/0                   gradient clipping, which keeps nothing
    opt/1/0/...             the state of `optax_name`, tuples by index: opt/1/0/1/head/bias is Adam's first moment
    opt/2/0/0, ...          the count of steps of each schedule; what else stands in the chain keeps nothing

Moments are found by the name of their parameter. Blocks that `scan` stacks in one of the two are stacked or unstacked.
All moments of a transformation go on or none: one that began at zero beside a count of thousands of steps would make
the first updates many times too large. What goes on differently than there is told in a line.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from core import trees
from core.checkpoint import big_vision, pretrained
from core.errors import UserError, first_few, naming
from core.models import weights
from core.optim import ema
from core.state import Batch, TrainState
from core.training.state_init import Placement

KEY = "config.resume"

_COUNT = re.compile(r"opt/(?:[2-9]|[1-9]\d+)/0/0")
_NEVER_NEGATIVE = {"nu", "v", "v_row", "v_col", "sum_of_squares"}

Arrays = dict[str, np.ndarray]


class _UnmappedError(Exception):
  """A state of an optimizer that is none of ours; its text says why."""


class Stored:
  """A checkpoint of big_vision, read.

  Args:
    spec: what `big_vision.split` knows, or an `.npz` file of older heads.

  Attributes:
    source: what to call it.
    params: the parameters by name.
    state: the arrays of the state of `optax_name`, by what follows `opt/1/0/`.
    step: updates made.

  Raises:
    UserError: there is none, it is damaged, or it is no train state.
  """

  def __init__(self, spec: str):
    with naming(KEY):
      if pretrained.split(spec)[1]:
        raise UserError(f"{spec}: a run goes on from a whole state; config.model_init takes a subtree")
      self.source, named = pretrained.load_state(spec)
      if not any(name.startswith("opt/") for name in named):
        raise UserError(f"{self.source}: holds parameters alone; config.model_init starts from them")
      counts = {int(array) for name, array in named.items() if _COUNT.fullmatch(name) and array.size == 1}
      if len(counts) != 1:
        found = f"several counts, {first_few(list(map(str, sorted(counts))))}" if counts else "no count"
        raise UserError(f"{self.source}: holds {found} of the steps of a schedule, opt/N/0/0; an optax state has one")
      self.step = counts.pop()
      self.params = _below("params/", named)
      self.state = _below("opt/1/0/", named)
      self._check_moments()

  def _check_moments(self) -> None:
    """Refuses parameters of which some moments are there, and others not: a state has them of the same parameters."""
    fields = _fields((*_split(name, self.params), array) for name, array in self.state.items())
    moments = {field: arrays for field, arrays in fields.items() if None not in arrays}
    for name in sorted({name for arrays in moments.values() for name in arrays}):
      if missing := [field for field, arrays in moments.items() if name not in arrays]:
        raise UserError(f"{self.source}: it is not whole: opt/1/0/{missing[0]}/{name} is missing")


def is_one(resume: str) -> bool:
  """Returns whether what `config.resume` names is by its name such a checkpoint, and none of ours."""
  return big_vision.split(resume) is not None or resume.partition("#")[0].endswith(".npz")


def restore(
  stored: Stored, placement: Placement, batch: Batch, lengths: Mapping[str, int], say: Callable[[str], None]
) -> TrainState:
  """Returns the state that a checkpoint holds, each array where it is to live.

  Args:
    stored: the checkpoint.
    placement: of this run.
    batch: an input of the model, for what the checkpoint does not hold: teachers, and variables beside parameters.
    lengths: total_steps, batch_size and data_size.
    say: is called with a line for each thing that does not go on as it was.

  Raises:
    UserError: it is of another model.
  """
  shapes = placement.shapes
  named, lacking = params_of(stored, placement)
  if lacking or shapes.collections:
    fresh = placement.fresh_variables(batch)
    of_fresh = dict(trees.flatten_with_names(fresh["params"]))

  def parameter(name: str, x: Any) -> jax.Array:
    return of_fresh[name] if name in lacking else _put(named[name], x)

  params = trees.map_with_names(parameter, shapes.params)
  collections = {name: fresh[name] for name in shapes.collections}
  if collections:
    say(f"{KEY}: big_vision keeps no {', '.join(collections)}: they start anew")
  opt_state = _opt_state(moments_of(stored, placement, lengths, say), params, placement)
  return TrainState(_put(np.int32(stored.step), shapes.step), params, opt_state, collections)


def params_of(stored: Stored, placement: Placement) -> tuple[Arrays, set[str]]:
  """Returns the parameters of a checkpoint under our names and in our types, and the names of the teachers' others.

  Raises:
    UserError: it is of another model.
  """
  wanted = dict(trees.flatten_with_names(placement.shapes.params))
  named = _restacked(_with_root(stored.params, _root(stored, placement)), wanted)
  frozen = placement.task.frozen
  lacking = {name for name in wanted.keys() - named.keys() if trees.first_match(name, frozen) is not None}
  with naming(KEY):
    merged = weights.merge(named, {n: x for n, x in wanted.items() if n not in lacking}, (), source=stored.source)
  return merged, lacking


def moments_of(
  stored: Stored, placement: Placement, lengths: Mapping[str, int], say: Callable[[str], None]
) -> dict[int, np.ndarray]:
  """Returns the leaves of our optimizer's state that go on, by their number; says which do not.

  Args:
    stored: the checkpoint.
    placement: of this run.
    lengths: total_steps, batch_size and data_size.
    say: see `restore`.
  """
  (_, _, *others), recipe = placement.shapes.opt_state, placement.recipe
  ends = np.cumsum([len(jax.tree.leaves(part)) for part in placement.shapes.opt_state])
  found = {int(ends[0]): np.int32(stored.step)}
  try:
    arrays = _transformation(stored, placement, say)
    found |= {int(ends[0]) - len(arrays) + i: array for i, array in enumerate(arrays)}
  except _UnmappedError as error:
    say(f"{KEY}: the moments of {recipe.optax_name} start anew: {error}; parameters and step go on")
  for start, part in zip(ends[1:], others):
    if isinstance(part.inner_state, ema.EmaState):
      found[int(start)] = np.int32(min(stored.step, recipe.ema.start.steps(**lengths)))
      say(f"{KEY}: big_vision keeps no average of the parameters: ours begins with those of step {stored.step:,}")
    else:
      say(f"{KEY}: big_vision keeps no direction of LookSAM: ours begins at zero")
  return found


def _transformation(stored: Stored, placement: Placement, say: Callable[[str], None]) -> list[np.ndarray]:
  """Returns the leaves of the state of `optax_name`; says what of the checkpoint's has no place here.

  Raises:
    _UnmappedError: the checkpoint's is another, or does not have all of them.
  """
  state = placement.shapes.opt_state[0].inner_state[-1]
  # Layers that `scan` stacks may have a state of their own (`core.optim.stacked`).
  layered = type(state) is tuple and state and all(isinstance(each, optax.MaskedState) for each in state)
  groups = [each.inner_state for each in state] if layered else [state]
  shapes = dict(trees.flatten_with_names(placement.shapes.params))
  wanted = [(*_split(name, shapes), leaf) for group in groups for name, leaf in _indexed(group)]
  root = _root(stored, placement)
  there = _fields((*_split(name, stored.params), array) for name, array in stored.state.items())
  there = {field: _with_root(arrays, root) for field, arrays in there.items()}
  here = _fields(wanted)
  if {(field, None in arrays) for field, arrays in there.items()} != {
    (f, None in arrays) for f, arrays in here.items()
  }:
    raise _UnmappedError("those in the checkpoint are of another transformation")
  found = {field: _restacked(arrays, here[field]) for field, arrays in there.items()}
  if left := sorted({name for field in here for name in found[field].keys() - here[field].keys()}):
    say(f"{KEY}: the moments of {first_few(left)} are left: it has none here, being frozen")
  of_params = _with_root(stored.params, root)
  for place in {place for group in groups for place in _places(group, optax.FactoredState)}:
    triple = [f"{place}/{i}".strip("/") for i in (1, 2, 3)]
    found |= dict(zip(triple, _factored_as(triple, there, found, here, of_params)))
  attributes = [name for name, _ in trees.flatten_with_names(state)]
  return [_fitted(found[field], field, *rest, name) for (field, *rest), name in zip(wanted, attributes, strict=True)]


def _fitted(arrays: Arrays, field: str, param: str | None, leaf: Any, attribute: str) -> np.ndarray:
  """Returns the array of one leaf.

  Args:
    arrays: of this field, by parameter.
    field: by index.
    param: whose leaf it is; None of a count.
    leaf: its shape.
    attribute: the whole name of the leaf.

  Raises:
    _UnmappedError: there is none of this shape, or none that can be its.
  """
  if param not in arrays:
    raise _UnmappedError(f"the checkpoint has none of {param}")
  array = arrays[param]
  if param is None and array.size == 1:  # Of each stacked layer, too.
    return np.broadcast_to(array.reshape(()), leaf.shape)
  if array.shape != leaf.shape:
    raise _UnmappedError(f"opt/1/0/{field}/{param} is {list(array.shape)} and not {list(leaf.shape)}")
  if _NEVER_NEGATIVE & set(attribute.removesuffix(f"/{param}").split("/")) and (array < 0).any():
    raise _UnmappedError(f"opt/1/0/{field}/{param} holds negative numbers, and no second moments")
  return array


def _factored_as(
  triple: Sequence[str],
  there: Mapping[str, Arrays],
  found: Mapping[str, Arrays],
  here: Mapping[str, Mapping[str, Any]],
  params: Arrays,
) -> list[Arrays]:
  """Returns Adafactor's second moments, factored as they are here.

  big_vision factors a stack of layers as one parameter, along its two longest sides, of which the layers may be one;
  here each layer is a parameter (findings/adafactor_of_scanned_layers.sh). Where that differs, the moments are those
  that the factors there stand for, and their means here.

  Args:
    triple: the fields of row, column and whole moments.
    there: the checkpoint's arrays by field and parameter.
    found: the same, stacked as here.
    here: the shapes here.
    params: the checkpoint's parameters.
  """
  rows, columns, wholes = (there.get(field, {}) for field in triple)
  names = rows.keys() & columns.keys() & wholes.keys()
  whole = {name: _second_moment(rows[name], columns[name], wholes[name], params[name].shape) for name in names}
  whole = _restacked(whole, here[triple[0]])
  out: list[Arrays] = [{}, {}, {}]
  for name in here[triple[0]]:
    wanted = [here[field][name].shape for field in triple]
    kept = [found[field].get(name) for field in triple]
    stacked = int(trees.is_stacked(name))
    unused = [math.prod(shape[stacked:]) == 1 and len(shape) == 1 + stacked for shape in wanted]
    if name in whole and whole[name].shape == wanted[2]:
      unused[2] = False
    if not all(
      skip or (array is not None and array.shape == shape) for skip, array, shape in zip(unused, kept, wanted)
    ):
      kept = _factors(whole[name], stacked) if name in whole else [None] * 3
    for arrays, skip, array, shape in zip(out, unused, kept, wanted):
      if skip or array is not None:
        arrays[name] = np.zeros(shape, np.float32) if skip else array
  return out


def _second_moment(row: np.ndarray, column: np.ndarray, whole: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the second moments of a parameter, from their factors where it has them: V = R C / mean(R)."""
  if whole.shape == shape or len(shape) < 2:
    return whole
  *_, short, long = np.argsort(shape)  # As optax chooses the axes.
  rows, columns = np.expand_dims(row, long), np.expand_dims(column, short)
  mean = rows.mean(axis=short, keepdims=True)
  return rows * columns / np.where(mean > 0, mean, 1)


def _factors(whole: np.ndarray, stacked: int) -> list[np.ndarray]:
  """Returns rows, columns and the whole of second moments, of each layer where they are stacked."""
  if whole.ndim - stacked < 2:
    return [whole, whole, whole]
  *_, short, long = np.argsort(whole.shape[stacked:]) + stacked
  return [whole.mean(axis=long), whole.mean(axis=short), whole]


def _opt_state(found: Mapping[int, np.ndarray], params: Any, placement: Placement) -> Any:
  """Returns the optimizer's state of leaves by their number, and of fresh ones where there is none."""
  leaves, treedef = jax.tree.flatten(placement.shapes.opt_state)
  fresh = [i for i in range(len(leaves)) if i not in found]

  def init(params: Any) -> list[jax.Array]:
    made = jax.tree.leaves(placement.tx.init(params))
    return [made[i] for i in fresh]

  made = iter(jax.jit(init, out_shardings=[leaves[i].sharding for i in fresh])(params))
  return treedef.unflatten([_put(found[i], leaf) if i in found else next(made) for i, leaf in enumerate(leaves)])


def _put(array: np.ndarray, like: Any) -> jax.Array:
  """Returns an array where its like is to live, for itself: the first step takes its memory."""
  return jax.device_put(np.asarray(array, like.dtype), like.sharding, may_alias=False)


def _root(stored: Stored, placement: Placement) -> str:
  """Returns what stands before all names of the checkpoint here: `student/` of the models of a distillation, or ""."""
  frozen = placement.task.frozen
  names = [name for name, _ in trees.flatten_with_names(placement.shapes.params)]
  roots = {f"{name.partition('/')[0]}/" for name in names if trees.first_match(name, frozen) is None}
  root = roots.pop() if frozen and len(roots) == 1 else ""
  return "" if any(name.startswith(root) for name in stored.params) else root


def _with_root(named: Arrays, root: str) -> Arrays:
  return {name if name is None else f"{root}{name}": array for name, array in named.items()}


def _restacked(named: Arrays, wanted: Mapping[str, Any]) -> Arrays:
  """Returns arrays by parameter with the blocks of each encoder stacked, or apart, as they are in `wanted`."""
  stacked = {_encoder(name) for name in wanted if name and trees.is_stacked(name)}
  counts = {name: array for name, array in named.items() if name is None}
  stacks = {name: array for name, array in named.items() if name and _encoder(name) in stacked}
  others = {name: array for name, array in named.items() if name and name not in stacks}
  return counts | weights.match_scan(others, {}) | weights.match_scan(stacks, dict.fromkeys(filter(None, wanted)))


def _encoder(name: str) -> str | None:
  """Returns what stands before the blocks in a parameter's name; None of one that is in no block."""
  match = re.match(r"(|.*/)encoderblock(_\d+)?/", name)
  return match and match[1]


def _split(name: str, params: Mapping[str, Any]) -> tuple[str, str | None]:
  """Returns the field of an optimizer's state and the parameter that a name is of; None of a count."""
  parts = name.split("/")
  for start in range(len(parts)):
    if (param := "/".join(parts[start:])) in params:
      return "/".join(parts[:start]), param
  return name, None


def _fields(found: Iterator[tuple[str, str | None, Any]]) -> dict[str, dict[str | None, Any]]:
  fields: dict[str, dict[str | None, Any]] = {}
  for field, param, leaf in found:
    fields.setdefault(field, {})[param] = leaf
  return fields


def _indexed(tree: Any, *path: str) -> Iterator[tuple[str, Any]]:
  """Yields the leaves of a state by big_vision's names: those of tuples, named ones too, are numbers."""
  children = _children(tree)
  if children is None:
    yield "/".join(path), tree
  for key, child in children or ():
    yield from _indexed(child, *path, str(key))


def _places(tree: Any, kind: type, *path: str) -> Iterator[str]:
  """Yields the names of the parts of a state that are of a kind."""
  if isinstance(tree, kind):
    yield "/".join(path)
  for key, child in _children(tree) or ():
    yield from _places(child, kind, *path, str(key))


def _children(tree: Any) -> list[tuple[Any, Any]] | None:
  if isinstance(tree, Mapping):
    return sorted(tree.items())
  return list(enumerate(tree)) if isinstance(tree, tuple | list) else None


def _below(prefix: str, named: Arrays) -> Arrays:
  return {name.removeprefix(prefix): array for name, array in named.items() if name.startswith(prefix)}
