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

import ast
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

Strategy = str | tuple[str | None, ...]

# The kinds of dimensions that activations have, and the axes over which each is split where a config says nothing.
ACTIVATIONS = {
  "act_batch": ("slice", "replica", "data", "fsdp"),
  "act_len": ("sequence",),  # Tokens of a sequence.
  "act_emb": (),  # The width that runs through the blocks.
  "act_heads": ("tensor",),
  "act_mlp": ("tensor",),  # The hidden layer of an MLP.
  "act_classes": ("tensor",),
}

AUTO = "auto"

# Which dimension of a transformer's parameters goes over the axis "tensor"; all else is split as the others.
_TENSOR = [
  (r".*/(query|key|value)/kernel", "fsdp(tensor=-2)"),
  (r".*/out/kernel", "fsdp(tensor=-3)"),
  (r".*/MlpBlock_0/Dense_0/kernel", "fsdp(tensor=-1)"),
  (r".*/MlpBlock_0/Dense_1/kernel", "fsdp(tensor=-2)"),
  (r"(.*/)?head/kernel", "fsdp(tensor=-1)"),
]

# What `auto_axes` lets the state before a step take on a device: less saves little, and costs longer gathers.
_STATE_BYTES = 512 << 20

_held: tuple[Mesh, Mapping[str, tuple[str, ...]]] | None = None


def make_mesh(
  axes: Sequence[tuple[str, int]] | str = (("data", -1),), devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh of a config's `mesh` entry over all devices (of all processes).

  Args:
    axes: (name, size) pairs; at most one size is -1 and takes what is left. "auto", which a training run weighs by
      `auto_axes`, is to any other program one axis "fsdp".
    devices: defaults to `jax.devices()`.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if isinstance(axes, str):
    if axes != AUTO:
      raise UserError(f"config.mesh must be {AUTO!r} or (axis, size) pairs, [('data', -1)] say, got {axes!r}")
    axes = [("fsdp", -1)]
  names, sizes = [name for name, _ in axes], [size for _, size in axes]
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) > 1 or min(known, len(devices)) < 1 or len(devices) % known:
    raise UserError(f"config.mesh: {dict(axes)} does not fit on {len(devices)} devices")
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  if math.prod(sizes) != len(devices):
    raise UserError(
      f"config.mesh: {dict(zip(names, sizes))} needs {math.prod(sizes)} devices, there are {len(devices)}"
    )
  return Mesh(_arranged(devices, dict(zip(names, sizes))), names)


def _arranged(devices: Sequence[jax.Device], sizes: Mapping[str, int]) -> np.ndarray:
  """The devices [*sizes] such that neighbours along an axis are neighbours in the machine, as far as can be.

  The axis "slice" runs over the slices of a multi-slice job, which the data-center network joins; all others stay
  within one.
  """
  if "slice" in sizes and len({getattr(device, "slice_index", 0) for device in devices}) > 1:
    within = [1 if name == "slice" else size for name, size in sizes.items()]
    between = [size if name == "slice" else 1 for name, size in sizes.items()]
    return mesh_utils.create_hybrid_device_mesh(within, between, devices)
  return mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)


def auto_axes(params: Any, state_bytes: int, batch_size: int, devices: int, slices: int = 1) -> list[tuple[str, int]]:
  """The mesh that `mesh="auto"` stands for, by this rule:

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
    """Bytes of state on a device: what of the parameters is not split weighs as much in the rest of it."""
    mesh = AbstractMesh((fsdp, tensor), ("fsdp", "tensor"))
    specs = [NamedSharding(mesh, _spec_fsdp(name, shape, itemsize, mesh)) for name, shape, itemsize in leaves]
    parts = sum(math.prod(spec.shard_shape(shape)) * itemsize for spec, (_, shape, itemsize) in zip(specs, leaves))
    return state_bytes * parts / whole

  sizes = [size for size in range(1, room + 1) if room % size == 0]
  fits = [size for size in sizes if held(size) <= _STATE_BYTES]
  fsdp = fits[0] if fits else min(sizes, key=held)
  axes = {"slice": slices, "replica": devices // slices // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
  return [(name, size) for name, size in axes.items() if size > 1 or name == "fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Sequence[tuple[str, Any]] = ()) -> NamedSharding:
  """The first dimension split over the axes of the rule `act_batch`, see ACTIVATIONS."""
  return NamedSharding(mesh, PartitionSpec(_activation_axes(mesh, rules)["act_batch"]))


@contextlib.contextmanager
def activations(mesh: Mesh, rules: Sequence[tuple[str, Any]] = ()) -> Iterator[None]:
  """While it is open, `constrain` holds activations to `mesh` by `rules`, a config's `sharding_rules`.

  Raises:
    UserError: a rule names a kind of dimension that there is not, or an axis that the mesh lacks.
  """
  global _held  # Not a context variable: threads that compile in the background are to see it, too.
  outer, _held = _held, (mesh, _activation_axes(mesh, rules))
  try:
    yield
  finally:
    _held = outer


def held_batch() -> NamedSharding | None:
  """How `activations` that are held split a batch; None where none are."""
  return _held and NamedSharding(_held[0], PartitionSpec(_held[1]["act_batch"]))


def constrain(x: Float[Array, "..."], *dims: str | None) -> Float[Array, "..."]:
  """`x`, whose dimensions are of the kinds `dims`, laid out over the mesh as `activations` says; elsewhere as it is.

  Without it the compiler may well split the activations as the parameters are, of which each device then holds those
  of all the batch. Dimensions that are not named (None, or left out at the end) are whole on each device; so is one
  that its axes do not divide.
  """
  if _held is None or jax.sharding.get_abstract_mesh().manual_axes:  # In shard_map a device sees its own part alone.
    return x
  mesh, axes = _held
  fits = lambda size, names: names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None
  spec = [fits(size, axes[dim]) if dim else None for size, dim in zip(x.shape, dims)]
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def on_own_examples(
  fn: Callable[..., Float[Array, "batch ..."]], x: Float[Array, "batch ..."], *whole: Float[Array, "..."]
) -> Float[Array, "batch ..."]:
  """`fn(x, *whole)`, where each device is made to take its own examples of `x`; for what the compiler cannot split."""
  if _held is None or jax.sharding.get_abstract_mesh().manual_axes:
    return fn(x, *whole)
  mesh, axes = _held
  own = PartitionSpec(axes["act_batch"])
  if x.shape[0] % batch_parts(NamedSharding(mesh, own)):
    return fn(x, *whole)
  return jax.shard_map(fn, mesh=mesh, in_specs=(own, *[PartitionSpec()] * len(whole)), out_specs=own)(x, *whole)


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

  Without rules, a mesh with an axis "fsdp" splits the parameters over it, and those of transformers over "tensor".

  Raises:
    UserError: an unknown strategy, an axis that the mesh lacks, or a dimension that does not divide.
  """
  if not strategy and "fsdp" in mesh.axis_names:
    strategy = [*(_TENSOR if "tensor" in mesh.axis_names else ()), (".*", "fsdp")]
  patterns, hows = [regex for regex, _ in strategy], [how for _, how in strategy]

  def sharding(name: str, leaf: Any) -> NamedSharding:
    match = trees.first_match(name, patterns)
    spec = PartitionSpec() if match is None else _spec(name, leaf.shape, leaf.dtype.itemsize, hows[match], mesh)
    return NamedSharding(mesh, spec)

  return trees.map_with_names(sharding, params)


def follow_params(state: Any, params: Any, shardings: Any) -> Any:
  """Shardings for a tree that holds parameter-like leaves (moments, averages) under names that end in the parameter's.

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
        return NamedSharding(found.mesh, _spec_of_state(leaf.shape, shape, found.spec))
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
  return _spec_fsdp(name, shape, itemsize, mesh, **kwargs)


def _spec_fsdp(
  name: str,
  shape: tuple[int, ...],
  itemsize: int,
  mesh: Mesh | AbstractMesh,
  axis: str | Sequence[str] | None = None,
  tensor: int | None = None,
  min_size_to_shard_mb: float = 4,
) -> PartitionSpec:
  """Splits over each axis in turn the largest dimension that is whole and divides, or else a part that does.

  A small array costs more to gather than it saves and stays whole. So does the first dimension of blocks stacked by
  `scan`, of which each step of the loop is to gather its own.

  Args:
    axis: or several; by default "fsdp", or where there is none the mesh's first.
    tensor: the dimension that goes over the axis "tensor", if it divides.
  """
  default = "fsdp" if "fsdp" in mesh.axis_names else mesh.axis_names[0]
  axes = _axes(mesh, axis or default, "config.sharding_strategy")
  if math.prod(shape) * itemsize < min_size_to_shard_mb * 2**20:
    return PartitionSpec()
  taken: list[tuple[str, ...]] = [()] * len(shape)
  held = list(shape)

  def split(dimension: int, axis: str) -> None:
    taken[dimension] += (axis,)
    held[dimension] //= mesh.shape[axis]

  if tensor is not None:
    (by,) = _axes(mesh, "tensor", "config.sharding_strategy")
    if -len(shape) <= tensor < len(shape) and shape[tensor] % mesh.shape[by] == 0:
      split(tensor % len(shape), by)
  stacked = "encoderblock" in name.split("/")
  for by in axes:
    divisible = [i for i, size in enumerate(held) if size % mesh.shape[by] == 0 and not (stacked and i == 0)]
    if divisible:
      split(max(divisible, key=lambda i: (not taken[i], held[i], i)), by)
  return PartitionSpec(*(names or None for names in taken)) if any(taken) else PartitionSpec()


def _spec_of_state(shape: tuple[int, ...], of_param: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec:
  """Of a leaf of optimizer state by its parameter's shape and spec."""
  if shape == of_param:
    return spec
  axes = (*spec, *[None] * (len(of_param) - len(spec)))
  for lost in range(len(of_param)):
    if of_param[:lost] + of_param[lost + 1 :] == shape:
      return PartitionSpec(*axes[:lost], *axes[lost + 1 :])
  return PartitionSpec()


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
  options = {"replicate": (), "fsdp": ("axis", "tensor", "min_size_to_shard_mb")}
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


def _activation_axes(mesh: Mesh, rules: Sequence[tuple[str, Any]]) -> dict[str, tuple[str, ...]]:
  """The mesh's axes over which each kind of dimension is split."""
  axes = {dim: tuple(axis for axis in known if axis in mesh.axis_names) for dim, known in ACTIVATIONS.items()}
  axes["act_batch"] = axes["act_batch"] or mesh.axis_names[:1]
  for dim, names in rules:
    if dim not in axes:
      raise UserError(f"config.sharding_rules: no kind of dimension {dim!r}{nearest(dim, axes)}")
    axes[dim] = _axes(mesh, names or (), "config.sharding_rules")
  return axes


def _axes(mesh: Mesh | AbstractMesh, names: str | Sequence[str], key: str) -> tuple[str, ...]:
  """One axis or several as a tuple, each of them known to the mesh."""
  names = (names,) if isinstance(names, str) else tuple(names)
  for name in names:
    if name not in mesh.axis_names:
      raise UserError(f"{key}: the mesh has no axis {name!r}{nearest(name, mesh.axis_names)}")
  return names
