"""What a compiled program does on each device in one run: multiply-adds, bytes of memory, collectives."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import numpy as np

from tools.aot.hlo import Computation, Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all")

# They move nothing, or what they stand for is counted elsewhere.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
  "partition-id", "replica-id", "opt-barrier", "optimization-barrier", "iota", "async-start", "async-update", "domain",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather", "slice-start")


@dataclasses.dataclass(frozen=True)
class Collective:
  """A transfer between devices.

  Attributes:
    kind: one of KINDS.
    bytes: of the whole array, on each device: what is gathered, what is scattered, what is reduced or passed on.
    group: devices among which it is done.
    times: how often in one run of the program.
    in_loop: whether it is inside of a loop.
    type: of the result.
    op_name: the path of the JAX operation that needs it.
  """

  kind: str
  bytes: int
  group: int
  times: int
  in_loop: bool
  type: str
  op_name: str


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one device in one run. `flops` are those of matrix products and convolutions, a multiply-add being two."""

  flops: float
  bytes: float
  collectives: tuple[Collective, ...]
  unknown_loops: tuple[str, ...]


def cost(module: Module, devices: int) -> Cost:
  """Returns the cost of a program that is compiled for `devices`."""
  flops = bytes_ = 0.0
  for name, executions in module.executions.items():
    computation = module.computations[name]
    for each in computation.instructions:
      flops += executions.times * matrix_flops(computation, each)
      if not executions.fused:
        bytes_ += executions.times * memory_bytes(module, computation, each)
  return Cost(flops, bytes_, tuple(collectives(module, devices)), tuple(module.unknown_loops))


def collectives(module: Module, devices: int) -> list[Collective]:
  """Returns all transfers.

  The start and the end of an asynchronous one are one, and so are the fusions that it spans.
  """
  found: dict[object, Collective] = {}
  for name, executions in module.executions.items():
    for each in module.computations[name].instructions:
      kind = each.opcode.removesuffix("-start")
      if kind not in KINDS:
        continue
      computation = module.computations[name]
      # A TPU's reduce-scatter is written as an all-reduce of which each device keeps a part.
      if kind == "all-reduce" and "all-reduce-scatter" in name:
        kind = "reduce-scatter"
      one = Collective(
        kind, _payload(computation, each, kind), _group_size(each, devices), executions.times, executions.in_loop,
        _result(each), each.op_name,
      )  # fmt: skip
      # A transfer that overlaps with computation is spread over the fusions that hide it, with one channel.
      spread = "chain_id=" in each.attributes
      key = (kind, re.search(r"channel_id=(\d+)", each.attributes)[1]) if spread else (name, each.name)
      if key not in found or found[key].times < one.times:
        found[key] = one
  return [each for each in found.values() if each.group > 1]


def by_kind(found: Sequence[Collective]) -> dict[str, dict[str, int]]:
  """Returns `{"all-gather": {"count": 3, "bytes": 4096}}`, what is inside of loops multiplied by their trips."""
  totals = {kind: collections.Counter() for kind in KINDS}
  for each in found:
    totals[each.kind].update(count=each.times, bytes=each.times * each.bytes)
  return {kind: dict(total) for kind, total in totals.items() if total}


def largest(found: Sequence[Collective], kind: str, *, in_loop: bool) -> Collective | None:
  """Returns the largest transfer of a kind inside of loops, or outside."""
  return max((c for c in found if c.kind == kind and c.in_loop == in_loop), key=lambda c: c.bytes, default=None)


def _payload(computation: Computation, instruction: Instruction, kind: str) -> int:
  result = sum(array.bytes for array in instruction.arrays if array.shape or array.dtype not in ("u32", "s32"))
  operands = sum(a.bytes for name in instruction.operands for a in computation.by_name[name].arrays)
  if kind == "reduce-scatter":
    return operands
  if instruction.opcode in ("all-gather-start", "collective-permute-start"):
    return result - operands  # The type of the start holds the operands as well.
  return result


def _result(instruction: Instruction) -> str:
  return ", ".join(f"{a.dtype}[{','.join(map(str, a.shape))}]" for a in instruction.arrays[:2])


def _group_size(instruction: Instruction, devices: int) -> int:
  """Returns the number of devices of a replica group, in any of the three ways in which XLA writes them."""
  text = instruction.attributes
  if "source_target_pairs=" in text:
    return devices
  if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part) if part else sizes[name] for name, part in parts)
  if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
    return int(tiled[2])
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
    return listed[1].count(",") + 1
  return devices


def matrix_flops(computation: Computation, instruction: Instruction) -> int:
  """Returns the FLOPs of a matrix product or convolution; 0 of all else."""
  if instruction.opcode not in ("dot", "convolution"):
    return 0
  left, right = (computation.by_name[name].arrays[0].shape for name in instruction.operands[:2])
  out = instruction.arrays[0].shape
  if instruction.opcode == "dot":
    return 2 * math.prod(out) * math.prod(left[i] for i in instruction.numbers("lhs_contracting_dims"))
  return _convolution_flops(instruction.attributes, left, right, out)


def _convolution_flops(attributes: str, left, right, out) -> int:
  """Counts no product with padding: a TPU's matrix product is written as a convolution that is mostly padding."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
  at = [{label: i for i, label in enumerate(labels[n])} for n in (1, 2, 3)]
  window = _window(attributes)
  pairs = 1
  for n in range(len(labels[1]) - 2):
    options = {key: values[n] for key, values in window.items() if key != "pad"}
    low = window["pad"][n] if "pad" in window else 0
    pairs *= _valid_pairs(
      left[at[0][str(n)]], right[at[1][str(n)]], out[at[2][str(n)]], low,
      options.get("stride", 1), options.get("lhs_dilate", 1), options.get("rhs_dilate", 1),
    )  # fmt: skip
  groups = re.search(r"batch_group_count=(\d+)", attributes)
  batch = left[at[0]["b"]] // (int(groups[1]) if groups else 1)
  # The kernel's own number of inputs is that of a group of features.
  return 2 * pairs * batch * right[at[1]["i"]] * right[at[1]["o"]]


def _window(attributes: str) -> dict[str, list[int]]:
  """Returns `{"size": [16, 16], "pad": [15, 0], ...}`; of the padding only what comes first."""
  match = re.search(r"window=\{([^}]*)\}", attributes)
  if not match:
    return {}
  fields = dict(part.split("=") for part in match[1].split())
  return {key: [int(n.split("_")[0]) for n in value.split("x")] for key, value in fields.items()}


@functools.cache
def _valid_pairs(size: int, kernel: int, out: int, low: int, stride: int, dilate: int, kernel_dilate: int) -> int:
  """Counts the pairs of an output's and a kernel's position that meet an element of the input, along one dimension."""
  place = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None] * kernel_dilate
  return int(np.sum((place >= 0) & (place < (size - 1) * dilate + 1) & (place % dilate == 0)))


def memory_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
  """Returns the bytes of main memory that an instruction reads and writes; the chip's own (VMEM) does not count."""
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith("-done"):
    return 0
  if opcode == "fusion":
    return _fusion_bytes(module, computation, instruction)
  written = _in_memory(instruction)
  if opcode in ("copy-start", "all-gather-start", "collective-permute-start"):
    return written  # The type holds source and destination.
  if opcode in _SLICES:
    source, *_ = module.operands(computation, instruction)
    part = instruction.arrays[1] if opcode == "slice-start" else instruction.arrays[0]
    return part.bytes * ((source.arrays[0].space == 0) + (part.space == 0))
  if opcode == "dynamic-update-slice":
    update = computation.by_name[instruction.operands[1]]
    return _in_memory(update) + update.arrays[0].bytes * (instruction.arrays[0].space == 0)
  return written + sum(map(_in_memory, module.operands(computation, instruction)))


def _in_memory(instruction: Instruction) -> int:
  return sum(array.bytes for array in instruction.arrays if array.space == 0)


def _fusion_bytes(module: Module, computation: Computation, fusion: Instruction) -> int:
  inside = module.computations[fusion.called("calls")]
  parameters = {int(each.literal): each for each in inside.instructions if each.opcode == "parameter"}
  total = 0
  for number, source in enumerate(module.operands(computation, fusion)):
    if number in parameters and any(array.space == 0 for array in source.arrays):
      total += min(_in_memory(source), _read(module, inside, parameters[number]))
  roots = [inside.by_name[name] for name in inside.root.operands] if inside.root.opcode == "tuple" else [inside.root]
  if len(roots) != len(fusion.arrays):
    return total + _in_memory(fusion)
  return total + sum(_written(module, inside, root) for root, a in zip(roots, fusion.arrays) if a.space == 0)


def _read(module: Module, inside: Computation, value: Instruction) -> int:
  """Returns the bytes of a fusion's input that it looks at: of one that is only sliced, the slices."""
  total = 0
  for user in inside.users.get(value.name, ()):
    if user.opcode in _SLICES and user.operands[0] == value.name:
      total += user.arrays[0].bytes
    elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
      total += 0  # Updated in place.
    elif user.opcode == "bitcast":
      total += _read(module, inside, user)
    elif user.opcode == "fusion":
      nested = module.computations[user.called("calls")]
      number = str(user.operands.index(value.name))
      total += _read(
        module, nested, next(p for p in nested.instructions if (p.opcode, p.literal) == ("parameter", number))
      )
    else:
      return sum(array.bytes for array in value.arrays)
  return total


def _written(module: Module, inside: Computation, root: Instruction) -> int:
  """Returns the bytes that a fusion writes of one of its results: of one that it updates in place, the update."""
  while root.opcode in ("bitcast", "copy") and root.operands[0] in inside.by_name:
    root = inside.by_name[root.operands[0]]
  if root.opcode == "fusion":
    nested = module.computations[root.called("calls")]
    if nested.root.opcode != "tuple":
      return _written(module, nested, nested.root)
  if root.opcode == "dynamic-update-slice":
    return inside.by_name[root.operands[1]].arrays[0].bytes
  return sum(array.bytes for array in root.arrays)
