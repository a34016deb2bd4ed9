"""Where arrays live: the device mesh, and rules that turn parameter names into shardings of a whole train state.

    mesh = [("data", -1)]                                     # axis sizes; -1 takes the devices that are left
    sharding_strategy = [(".*", "fsdp(axis='data')")]         # the first regex that matches a parameter's name decides
    sharding_rules = [("act_batch", ("data",))]               # mesh axes over which a batch is split

A strategy is `"replicate"`, `"fsdp(axis=..., min_size_to_shard_mb=...)"` (split the largest dimension that divides), or
a tuple of mesh axes for the last dimensions by hand: `(None, "model")`. Optimizer state follows its parameter.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core import trees
from core.errors import UserError, multiples_near, nearest

Strategy = str | tuple[str | None, ...]


def make_mesh(axes: Sequence[tuple[str, int]] = (("data", -1),), devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of a config's `mesh` entry over all devices (of all processes).

  Args:
    axes: (name, size) pairs; at most one size is -1 and takes what is left.
    devices: defaults to `jax.devices()`.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  names, sizes = [name for name, _ in axes], [size for _, size in axes]
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) > 1 or min(known, len(devices)) < 1 or len(devices) % known:
    raise UserError(f"config.mesh: {dict(axes)} does not fit on {len(devices)} devices")
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  if math.prod(sizes) != len(devices):
    raise UserError(
      f"config.mesh: {dict(zip(names, sizes))} needs {math.prod(sizes)} devices, there are {len(devices)}"
    )
  return Mesh(np.asarray(devices).reshape(sizes), names)


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Sequence[tuple[str, Any]] = ()) -> NamedSharding:
  """The first dimension split over the axes of the rule `act_batch`; by default over the mesh's first axis."""
  axes = _axes(mesh, dict(rules).get("act_batch", mesh.axis_names[0]), "config.sharding_rules")
  return NamedSharding(mesh, PartitionSpec(axes))


def batch_axes(sharding: NamedSharding) -> tuple[str, ...]:
  """The mesh axes over which a batch is split."""
  axes = sharding.spec[0]
  return (axes,) if isinstance(axes, str) else tuple(axes)


def batch_parts(sharding: NamedSharding) -> int:
  """Into how many parts a batch is split."""
  return math.prod(sharding.mesh.shape[axis] for axis in batch_axes(sharding))


def check_batch_size(batch_size: int, sharding: NamedSharding, key: str) -> None:
  """Refuses a batch size that the devices cannot split evenly, naming the nearest that they can."""
  parts = math.lcm(batch_parts(sharding), jax.process_count())
  if batch_size < 1 or batch_size % parts:
    right = multiples_near(batch_size, of=parts)
    raise UserError(f"{key}: {batch_size} examples cannot be split over {parts} devices; {right} can")


def params_shardings(params: Any, mesh: Mesh, strategy: Sequence[tuple[str, Strategy]] = ()) -> Any:
  """A sharding for each parameter, of arrays or of shapes; what no rule matches is replicated.

  Raises:
    UserError: an unknown strategy, an axis that the mesh lacks, or a dimension that does not divide.
  """
  patterns, hows = [regex for regex, _ in strategy], [how for _, how in strategy]

  def sharding(name: str, leaf: Any) -> NamedSharding:
    match = trees.first_match(name, patterns)
    spec = PartitionSpec() if match is None else _spec(name, leaf.shape, leaf.dtype.itemsize, hows[match], mesh)
    return NamedSharding(mesh, spec)

  return trees.map_with_names(sharding, params)


def follow_params(state: Any, params: Any, shardings: Any) -> Any:
  """Shardings for a tree that holds parameter-like leaves (moments, averages) under names that end in the parameter's.

  A leaf of its parameter's shape is sharded alike. One of another shape (a factored moment, a count) has lost the
  dimension that made the parameter large and is replicated.
  """
  named = {
    name: (leaf.shape, sharding)
    for (name, leaf), (_, sharding) in zip(trees.flatten_with_names(params), trees.flatten_with_names(shardings))
  }
  everywhere = replicated(next(iter(named.values()))[1].mesh)

  def sharding(name: str, leaf: Any) -> NamedSharding:
    parts = name.split("/")
    for start in range(len(parts)):
      shape, found = named.get("/".join(parts[start:]), (None, None))
      if found is not None:
        return found if shape == leaf.shape else everywhere
    return everywhere

  return trees.map_with_names(sharding, state)


def to_host(tree: Any) -> Any:
  """Whole NumPy arrays, also of arrays that are split over processes; all processes must call it."""

  def fetch(x: jax.Array) -> np.ndarray:
    # One array at a time: a process need not hold more of the tree twice than its largest leaf.
    return jax.device_get(x) if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(fetch, tree)


def _spec(name: str, shape: tuple[int, ...], itemsize: int, how: Strategy, mesh: Mesh) -> PartitionSpec:
  if isinstance(how, list | tuple):
    return _spec_by_dimension(name, shape, tuple(how), mesh)
  kind, kwargs = _parse(how)
  if kind == "replicate":
    return PartitionSpec()
  return _spec_fsdp(shape, itemsize, mesh, **kwargs)


def _spec_fsdp(shape, itemsize: int, mesh: Mesh, axis: Any = None, min_size_to_shard_mb: float = 4) -> PartitionSpec:
  """Splits the largest dimension that divides; a small array costs more to gather than it saves and stays whole."""
  axes = _axes(mesh, axis or mesh.axis_names[0], "config.sharding_strategy")
  parts = math.prod(mesh.shape[each] for each in axes)
  divisible = [i for i, size in enumerate(shape) if size % parts == 0]
  if not divisible or math.prod(shape) * itemsize < min_size_to_shard_mb * 2**20:
    return PartitionSpec()
  largest = max(divisible, key=lambda i: (shape[i], i))
  return PartitionSpec(*(axes if i == largest else None for i in range(len(shape))))


def _spec_by_dimension(name: str, shape, axes: tuple[str | None, ...], mesh: Mesh) -> PartitionSpec:
  """Aligned to the last dimensions, so one rule serves a block and the same blocks stacked by `scan`."""
  if len(axes) > len(shape):
    raise UserError(f"config.sharding_strategy: {axes} names {len(axes)} dimensions, {name} has shape {shape}")
  axes = (None,) * (len(shape) - len(axes)) + axes
  for size, axis in zip(shape, axes):
    if axis is not None:
      _axes(mesh, axis, "config.sharding_strategy")
      if size % mesh.shape[axis]:
        raise UserError(
          f"config.sharding_strategy: {name} {shape}: {size} is not divisible by {axis}={mesh.shape[axis]}"
        )
  return PartitionSpec(*axes)


def _parse(how: str) -> tuple[str, Mapping[str, Any]]:
  """`"fsdp(axis='data')"` -> `("fsdp", {"axis": "data"})`."""
  options = {"replicate": (), "fsdp": ("axis", "min_size_to_shard_mb")}
  try:
    node = ast.parse(how, mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    kind = call.func.id
    kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    readable = not call.args
  except (SyntaxError, ValueError, AttributeError):
    readable = False
  if not readable:
    raise UserError(f'config.sharding_strategy: cannot read {how!r}; write "fsdp(axis=\'data\')" or "replicate"')
  if kind not in options:
    raise UserError(f"config.sharding_strategy: no strategy {kind!r}{nearest(kind, options)}")
  for option in kwargs:
    if option not in options[kind]:
      raise UserError(f"config.sharding_strategy: {kind} has no option {option!r}{nearest(option, options[kind])}")
  return kind, kwargs


def _axes(mesh: Mesh, names: str | Sequence[str], key: str) -> tuple[str, ...]:
  """One axis or several as a tuple, each of them known to the mesh."""
  names = (names,) if isinstance(names, str) else tuple(names)
  for name in names:
    if name not in mesh.axis_names:
      raise UserError(f"{key}: the mesh has no axis {name!r}{nearest(name, mesh.axis_names)}")
  return names
