"""Where arrays live: the device mesh, and rules that turn names of parameters and of dimensions into shardings.

    mesh = "auto"                                             # the default: sizes by `auto_axes`
    mesh = [("data", -1)]                                     # axis sizes; -1 takes the devices that are left
    sharding_strategy = [(".*", "fsdp(axis='data')")]         # the first regex that matches a parameter's name decides
    sharding_rules = [("act_batch", ("data",))]               # mesh axes over which a dimension of activations is split

A batch is split over the axes "slice" (the slices of a multi-slice job), "replica", "data" and "fsdp"; over "fsdp"
parameters and their state are split, too (ZeRO-3, Rajbhandari et al. 2020), over "tensor" heads and hidden layers
(Megatron-LM, Shoeybi et al. 2019), and over "sequence" the tokens between the attentions.

A strategy is `"replicate"`; `"fsdp(axis=..., tensor=..., min_size_to_shard_mb=...)"`; or a tuple of mesh axes for the
last dimensions by hand: `(None, "model")`. Optimizer state follows its parameter.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from core import trees
from core.errors import UserError, multiples_near, nearest
from core.recipe import rules as recipe_rules
from core.recipe import words
from core.recipe.sharding import Fsdp

Strategy = str | Fsdp | tuple[str | None, ...]
ActivationRules = Sequence[tuple[str, str | Sequence[str] | None]]

# The kinds of dimensions that activations have, and the mesh axes over which each is split unless a config says more.
ACTIVATIONS = {
  "act_batch": ("slice", "replica", "data", "fsdp"),
  "act_len": ("sequence",),  # Tokens of a sequence.
  "act_emb": (),  # The width that runs through the blocks.
  "act_heads": ("tensor",),
  "act_mlp": ("tensor",),  # The hidden layer of an MLP.
  "act_classes": ("tensor",),
}

# The kinds that stand in one array, over which an axis can split one dimension only.
_IN_ONE_ARRAY = (
  *(("act_batch", "act_len", last) for last in ("act_emb", "act_heads", "act_mlp")),
  ("act_batch", "act_classes"),
)

AUTO = "auto"

# Which dimension of a transformer's parameters goes over the axis "tensor"; all else is split as the others.
_TENSOR = (
  (r".*/(query|key|value)/kernel", Fsdp(tensor=-2)),
  (r".*/out/kernel", Fsdp(tensor=-3)),
  (r".*/MlpBlock_0/Dense_0/kernel", Fsdp(tensor=-1)),
  (r".*/MlpBlock_0/Dense_1/kernel", Fsdp(tensor=-2)),
  (r"(.*/)?head/kernel", Fsdp(tensor=-1)),
)

# `auto_axes` splits parameters until the state before a step takes at most this on a device. A smaller bound would save
# little memory, and split over more devices, from which each layer is gathered more slowly.
_STATE_BYTES = 512 << 20

_KEY, _RULES = "config.sharding_strategy", "config.sharding_rules"

_held: tuple[Mesh, Mapping[str, tuple[str, ...]]] | None = None


def make_mesh(
  axes: Sequence[tuple[str, int]] | str = (("data", -1),), devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Returns the mesh of a config's `mesh` entry over all devices (of all processes).

  Args:
    axes: (name, size) pairs; at most one size is -1 and takes what is left. "auto", which a training run weighs by
      `auto_axes`, is to any other program one axis "fsdp".
    devices: defaults to `jax.devices()`.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = dict([("fsdp", -1)] if axes == AUTO else axes)
  known = math.prod(size for size in sizes.values() if size != -1)
  rest = max(1, len(devices) // known)
  sizes = {name: rest if size == -1 else size for name, size in sizes.items()}
  if math.prod(sizes.values()) != len(devices):
    line = f"config.mesh: {sizes} needs {math.prod(sizes.values())} devices, there are {len(devices)}"
    raise UserError(line)
  return Mesh(_arranged(devices, sizes), tuple(sizes))


def _arranged(devices: Sequence[jax.Device], sizes: Mapping[str, int]) -> np.ndarray:
  """Returns the devices [*sizes], such that neighbours along an axis are neighbours in the machine, if that can be.

  The axis "slice" runs over the slices of a multi-slice job, which the data-center network joins; all others stay
  within one.
  """
  if "slice" in sizes and len({getattr(device, "slice_index", 0) for device in devices}) > 1:
    within = [1 if name == "slice" else size for name, size in sizes.items()]
    between = [size if name == "slice" else 1 for name, size in sizes.items()]
    return mesh_utils.create_hybrid_device_mesh(within, between, devices)
  return mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)


def auto_axes(params: Any, state_bytes: int, batch_size: int, devices: int, slices: int = 1) -> list[tuple[str, int]]:
  """Returns the mesh that `mesh="auto"` stands for, by this rule:

  - "tensor" takes the devices that are more than the examples of a batch; they must divide it otherwise.
  - "fsdp" is as small as lets each device hold half a GiB of parameters and optimizer state, or where none does, what
    lets it hold least. It stays within a slice: whole layers travel over it, three times a step.
  - "replica" takes the rest, within the slice; "slice" runs over the slices. Gradients alone travel over them.

  Args:
    params: the parameters, or their shapes.
    state_bytes: of them and of the optimizer's state, all of it.
    batch_size: examples a step.
    devices: of all slices.
    slices: of a multi-slice job.
  """
  tensor = devices // math.gcd(devices, batch_size) if devices > batch_size else 1
  room = devices // slices // tensor if devices // slices % tensor == 0 else 1
  leaves = [(name, leaf.shape, leaf.dtype.itemsize) for name, leaf in trees.flatten_with_names(params)]
  whole = sum(math.prod(shape) * itemsize for _, shape, itemsize in leaves)

  def held(fsdp: int) -> float:
    """Returns bytes of state on a device; optimizer state is taken to be split as the parameters are."""
    mesh = AbstractMesh((fsdp, tensor), ("fsdp", "tensor"))
    specs = [NamedSharding(mesh, _spec_fsdp(name, shape, itemsize, mesh, Fsdp())) for name, shape, itemsize in leaves]
    parts = sum(math.prod(spec.shard_shape(shape)) * itemsize for spec, (_, shape, itemsize) in zip(specs, leaves))
    return state_bytes * parts / whole

  sizes = [size for size in range(1, room + 1) if room % size == 0]
  fits = [size for size in sizes if held(size) <= _STATE_BYTES]
  fsdp = fits[0] if fits else min(sizes, key=held)
  axes = {"slice": slices, "replica": devices // slices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
  return [(name, size) for name, size in axes.items() if size > 1 or name == "fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: ActivationRules = ()) -> NamedSharding:
  """Returns the sharding of a batch: its first dimension is split over the axes of `act_batch`, see ACTIVATIONS."""
  return NamedSharding(mesh, PartitionSpec(_activation_axes(mesh, rules)["act_batch"]))


@contextlib.contextmanager
def activations(mesh: Mesh, rules: ActivationRules = ()) -> Iterator[None]:
  """Opens a block in which `constrain` holds activations to `mesh` by `rules`, a config's `sharding_rules`.

  Raises:
    UserError: a rule names an axis that the mesh lacks, or one that splits two dimensions of an array.
  """
  global _held  # Not a context variable: threads that compile in the background are to see it, too.
  outer, _held = _held, (mesh, _activation_axes(mesh, rules))
  try:
    yield
  finally:
    _held = outer


def held_batch() -> NamedSharding | None:
  """Returns how an open `activations` splits a batch; None where none is open."""
  return _held and NamedSharding(_held[0], PartitionSpec(_held[1]["act_batch"]))


def constrain(x: Float[Array, "..."], *dims: str | None) -> Float[Array, "..."]:
  """Lays `x`, whose dimensions are of the kinds `dims`, out over the mesh as an open `activations` says.

  Where none is open `x` is returned as it is. Without it the compiler may well split the activations as the parameters
  are, of which each device then holds those of all the batch. Dimensions that are not named (None, or left out at the
  end) are whole on each device; so is one that its axes do not divide.
  """
  if _held is None or jax.sharding.get_abstract_mesh().manual_axes:  # In shard_map a device sees its own part alone.
    return x
  mesh, axes = _held

  def fitting(size: int, names: tuple[str, ...]) -> tuple[str, ...] | None:
    return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None

  spec = [fitting(size, axes[dim]) if dim else None for size, dim in zip(x.shape, dims)]
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def on_own_examples(
  fn: Callable[..., Float[Array, "batch ..."]], x: Float[Array, "batch ..."], *whole: Float[Array, "..."]
) -> Float[Array, "batch ..."]:
  """Returns `fn(x, *whole)`, of which each device computes its own examples; for what the compiler cannot split."""
  if _held is None or jax.sharding.get_abstract_mesh().manual_axes:
    return fn(x, *whole)
  mesh, axes = _held
  own = PartitionSpec(axes["act_batch"])
  if x.shape[0] % batch_parts(NamedSharding(mesh, own)):
    return fn(x, *whole)
  return jax.shard_map(fn, mesh=mesh, in_specs=(own, *[PartitionSpec()] * len(whole)), out_specs=own)(x, *whole)


def batch_axes(sharding: NamedSharding) -> tuple[str, ...]:
  """Returns the mesh axes over which a batch is split."""
  axes = sharding.spec[0]
  return (axes,) if isinstance(axes, str) else tuple(axes)


def batch_parts(sharding: NamedSharding) -> int:
  """Returns the number of parts into which a batch is split."""
  return math.prod(sharding.mesh.shape[axis] for axis in batch_axes(sharding))


def check_batch_size(batch_size: int, sharding: NamedSharding, key: str) -> None:
  """Refuses a batch size that the devices cannot split evenly, naming the nearest that they can."""
  parts = math.lcm(batch_parts(sharding), jax.process_count())
  if batch_size < 1 or batch_size % parts:
    right = multiples_near(batch_size, of=parts)
    raise UserError(f"{key}: {batch_size} examples cannot be split over {parts} devices; {right} can")


def params_shardings(params: Any, mesh: Mesh, strategy: Sequence[tuple[str, Strategy]] = ()) -> Any:
  """Returns a sharding for each parameter, of arrays or of shapes; what no rule matches is replicated.

  Without rules, a mesh with an axis "fsdp" splits the parameters over it, and those of transformers over "tensor".

  Raises:
    UserError: a regex that matches no parameter, an axis that the mesh lacks, or a dimension that does not divide.
  """
  if strategy:
    recipe_rules.refuse_idle([regex for regex, _ in strategy], [n for n, _ in trees.flatten_with_names(params)], _KEY)
    for i, (_, how) in enumerate(strategy):
      _refuse_unknown_axes(mesh, how, f"{_KEY}[{i}][1]")
  elif "fsdp" in mesh.axis_names:
    strategy = [*(_TENSOR if "tensor" in mesh.axis_names else ()), (".*", Fsdp())]
  patterns, hows = [regex for regex, _ in strategy], [how for _, how in strategy]

  def sharding(name: str, leaf: Any) -> NamedSharding:
    match = trees.first_match(name, patterns)
    spec = PartitionSpec() if match is None else _spec(name, leaf.shape, leaf.dtype.itemsize, hows[match], mesh)
    return NamedSharding(mesh, spec)

  return trees.map_with_names(sharding, params)


def follow_params(state: Any, params: Any, shardings: Any) -> Any:
  """Returns shardings for a tree of parameter-like leaves (moments, averages) whose names end in the parameter's.

  A leaf of its parameter's shape is sharded alike, and so is one that lacks a dimension of it (a factored moment), in
  those that it has. All else (a count) is replicated.
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
        kept = 1 if trees.is_stacked(name) else 0
        return NamedSharding(found.mesh, _spec_of_state(leaf.shape, shape, found.spec, kept))
    return everywhere

  return trees.map_with_names(sharding, state)


def to_host(tree: Any) -> Any:
  """Returns whole NumPy arrays, also of arrays that are split over processes; all processes must call it."""

  def fetch(x: jax.Array) -> np.ndarray:
    # One array at a time: a process need not hold more of the tree twice than its largest leaf.
    return jax.device_get(x) if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(fetch, tree)


def _spec(name: str, shape: tuple[int, ...], itemsize: int, how: Strategy, mesh: Mesh) -> PartitionSpec:
  if isinstance(how, tuple):
    return _spec_by_dimension(name, shape, how, mesh)
  return PartitionSpec() if how == "replicate" else _spec_fsdp(name, shape, itemsize, mesh, how)


def _spec_fsdp(name: str, shape: tuple[int, ...], itemsize: int, mesh: Mesh | AbstractMesh, how: Fsdp) -> PartitionSpec:
  """Splits over each axis in turn the largest dimension that is whole and divides, or else a part that does.

  A small array costs more to gather than it saves and stays whole. So does the first dimension of blocks stacked by
  `scan`, of which each step of the loop is to gather its own.
  """
  if math.prod(shape) * itemsize < how.min_size_to_shard_mb * 2**20:
    return PartitionSpec()
  taken: list[tuple[str, ...]] = [()] * len(shape)
  held = list(shape)

  def split(dimension: int, axis: str) -> None:
    taken[dimension] += (axis,)
    held[dimension] //= mesh.shape[axis]

  tensor = how.tensor
  if tensor is not None and -len(shape) <= tensor < len(shape) and shape[tensor] % mesh.shape["tensor"] == 0:
    split(tensor % len(shape), "tensor")
  stacked = trees.is_stacked(name)
  for by in _axes_of(mesh, how):
    divisible = [i for i, size in enumerate(held) if size % mesh.shape[by] == 0 and not (stacked and i == 0)]
    if divisible:
      split(max(divisible, key=lambda i: (not taken[i], held[i], i)), by)
  return PartitionSpec(*(names or None for names in taken)) if any(taken) else PartitionSpec()


def _spec_of_state(
  shape: tuple[int, ...], of_param: tuple[int, ...], spec: PartitionSpec, kept: int = 0
) -> PartitionSpec:
  """Returns the spec of a leaf of optimizer state by its parameter's shape and spec.

  Args:
    shape: of the leaf.
    of_param: its parameter's.
    spec: its parameter's.
    kept: how many first dimensions the leaf has for sure, those of stacked layers.
  """
  if shape == of_param:
    return spec
  axes = (*spec, *[None] * (len(of_param) - len(spec)))
  for lost in range(kept, len(of_param)):
    if of_param[:lost] + of_param[lost + 1 :] == shape:
      return PartitionSpec(*axes[:lost], *axes[lost + 1 :])
  return PartitionSpec()


def _spec_by_dimension(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh) -> PartitionSpec:
  """Returns a spec for the last dimensions, so that one rule serves a block and the same blocks stacked by `scan`."""
  if len(axes) > len(shape):
    line = f"{_KEY}: {words.shown(axes)} names {len(axes)} dimensions, {name} has shape {shape}"
    raise UserError(line)
  axes = (None,) * (len(shape) - len(axes)) + axes
  for size, axis in zip(shape, axes):
    if axis is not None and size % mesh.shape[axis]:
      raise UserError(f"{_KEY}: {name} {shape}: {size} is not divisible by {axis}={mesh.shape[axis]}")
  return PartitionSpec(*axes)


def _axes_of(mesh: Mesh | AbstractMesh, how: Fsdp) -> tuple[str, ...]:
  """Returns the axes over which a strategy splits, beside "tensor"."""
  if how.axis is not None:
    return _as_tuple(how.axis)
  free = [axis for axis in mesh.axis_names if how.tensor is None or axis != "tensor"]
  return ("fsdp",) if "fsdp" in free else tuple(free[:1])


def _refuse_unknown_axes(mesh: Mesh, how: Strategy, where: str) -> None:
  """Refuses a strategy over axes that the mesh lacks."""
  if isinstance(how, Fsdp):
    how = (*_axes_of(mesh, how), "tensor" if how.tensor is not None else None)
  if isinstance(how, tuple):
    _known(mesh, [axis for axis in how if axis is not None], where)


def _activation_axes(mesh: Mesh, rules: ActivationRules) -> dict[str, tuple[str, ...]]:
  """Returns the mesh's axes over which each kind of dimension is split."""
  said = {kind: _known(mesh, _as_tuple(names or ()), f"{_RULES}[{i}][1]") for i, (kind, names) in enumerate(rules)}
  axes: dict[str, tuple[str, ...]] = {}
  for kind, usual in ACTIVATIONS.items():
    # An axis that a rule gives to the examples, or to the tokens, splits by default nothing else.
    taken = {*axes.get("act_batch", ()), *axes.get("act_len", ())}
    found = tuple(axis for axis in usual if axis in mesh.axis_names and axis not in taken)
    axes[kind] = said.get(kind, found or mesh.axis_names[:1] if kind == "act_batch" else found)
  for kinds in _IN_ONE_ARRAY:
    names = [name for kind in kinds for name in axes[kind]]
    for name in names:
      if names.count(name) > 1:
        both = " and ".join(kind for kind in kinds if name in axes[kind])
        raise UserError(f"{_RULES}: {words.shown(name)} would split both {both} of an array; give it to one of them")
  return axes


def _as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else tuple(names)


def _known(mesh: Mesh | AbstractMesh, names: Sequence[str], where: str) -> tuple[str, ...]:
  """Returns axes as a tuple, once each of them is known to the mesh."""
  for name in names:
    if name not in mesh.axis_names:
      line = f"{where}: the mesh has no axis {words.shown(name)}{nearest(name, mesh.axis_names)}"
      raise UserError(line)
  return tuple(names)
