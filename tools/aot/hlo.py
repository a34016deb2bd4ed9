"""A compiled program as XLA prints it: its computations, how often each runs, and the sizes of its values.

XLA's own cost analysis counts the body of a loop once, whatever the number of its trips. Here every computation gets
the number of times that it runs in one run of the program, so that what is summed over computations is right under
`scan`.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_BITS = {"pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "bf16": 16, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a value's type. `space` 0 is the device's main memory; others are on the chip, or the host's."""

  dtype: str
  shape: tuple[int, ...]
  space: int
  layout: str = ""

  @property
  def bytes(self) -> int:
    """Returns the size without the padding of layouts."""
    return math.prod(self.shape) * _bits(self.dtype) // 8

  @property
  def padded_bytes(self) -> int:
    """Returns what it takes up.

    A TPU stores whole tiles, `{1,0:T(8,128)}` in 8 rows of 128, whatever of them is filled.
    """
    order, _, tiles = self.layout.strip("{}").partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    if not tile:
      return self.bytes
    sizes = [self.shape[int(i)] for i in reversed(order.split(",")) if i] or [1]
    sides = [int(n) for n in tile[1].split(",")][-len(sizes) :]
    rest = len(sizes) - len(sides)
    padded = [-(-size // side) * side for size, side in zip(sizes[rest:], sides)]
    return math.prod(sizes[:rest]) * math.prod(padded) * _bits(self.dtype) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """`%name = type opcode(operands), attributes`."""

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  literal: str  # What stands between the parentheses: the operands, or the value of a constant.
  attributes: str
  is_root: bool

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    return arrays_of(self.type)

  def called(self, attribute: str) -> str | None:
    """Returns the computation that `attribute`, "body" or "calls", names."""
    match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return match[1] if match else None

  def numbers(self, attribute: str) -> tuple[int, ...]:
    """Returns `(1, 2)` of `attribute={1,2}`; empty where it is missing."""
    match = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
    return tuple(int(n) for n in match[1].split(",") if n) if match else ()

  @property
  def op_name(self) -> str:
    """Returns the path of the JAX operation that this came from."""
    match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
    return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Computation:
  """A list of instructions; in a compiled program, in the order in which they run."""

  name: str
  instructions: tuple[Instruction, ...]

  @functools.cached_property
  def by_name(self) -> Mapping[str, Instruction]:
    return {each.name: each for each in self.instructions}

  @functools.cached_property
  def root(self) -> Instruction:
    return next((each for each in self.instructions if each.is_root), self.instructions[-1])

  @functools.cached_property
  def users(self) -> Mapping[str, list[Instruction]]:
    found = collections.defaultdict(list)
    for each in self.instructions:
      for name in dict.fromkeys(each.operands):
        found[name].append(each)
    return found


@dataclasses.dataclass(frozen=True)
class Executions:
  """How a computation runs in one run of the program.

  Attributes:
    times: how often, the trips of the loops around it multiplied.
    in_loop: whether there is a loop around it.
    fused: whether it is the inside of a fusion, whose values never reach memory.
  """

  times: int
  in_loop: bool
  fused: bool


class Module:
  """A compiled program.

  Attributes:
    computations: by name.
    entry: the one that runs first.
    executions: of each computation that runs at all; what only reductions and sorts apply to scalars is left out.
    unknown_loops: names of loops whose number of trips the program does not tell; they count as one trip.
  """

  def __init__(self, text: str):
    self.computations, self.entry = _parse(text)
    self.unknown_loops: list[str] = []
    self.executions = self._count()

  def operands(self, computation: Computation, instruction: Instruction) -> Iterator[Instruction]:
    """Returns the instructions that give an instruction's operands."""
    return (computation.by_name[name] for name in instruction.operands if name in computation.by_name)

  def _count(self) -> dict[str, Executions]:
    found: dict[str, Executions] = {}

    def visit(name: str, times: int, in_loop: bool, fused: bool) -> None:
      before = found.get(name, Executions(0, False, True))
      found[name] = Executions(before.times + times, before.in_loop or in_loop, before.fused and fused)
      computation = self.computations[name]
      for each in computation.instructions:
        if each.opcode == "while":
          trips = trip_count(self, computation, each)
          if trips is None:
            self.unknown_loops.append(each.name)
          for part in ("body", "condition"):
            visit(each.called(part), times * (1 if trips is None else trips), True, fused)
        elif each.opcode == "conditional":
          for branch in _branches(each):  # Each as if taken: an upper bound.
            visit(branch, times, in_loop, fused)
        elif each.opcode in ("fusion", "call", "async-start", "map") and (called := _callee(each)):
          visit(called, times, in_loop, fused or each.opcode == "fusion")

    visit(self.entry, 1, False, False)
    return found


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
  """Returns how often a loop runs: as XLA states it, else by the constants of its condition; None if neither tells."""
  if known := re.search(r'known_trip_count[^\d]*"?n?"?:?"?(\d+)', loop.attributes):
    return int(known[1])
  comparison = _comparison(module, module.computations[loop.called("condition")])
  if comparison is None:
    return None
  direction, compared = comparison
  start, end = (_constant(computation, loop, value) for value in compared)
  if start is None or end is None:
    return None
  span = {"LT": end - start, "LE": end - start + 1, "GT": start - end, "NE": abs(end - start)}.get(direction)
  return (
    None if span is None else math.ceil(span / _stride(module, module.computations[loop.called("body")], compared[0]))
  )


def _stride(module: Module, body: Computation, counter: Instruction) -> int:
  """Returns by how much a trip of a loop moves its counter.

  A product that is computed in parts may take two of them a trip.
  """
  if counter.opcode != "get-tuple-element" or body.root.opcode != "tuple":
    return 1
  index = re.search(r"index=(\d+)", counter.attributes)[1]
  moved, inside, given = _without_copies(body, body.root.operands[int(index)]), body, {}
  if moved is not None and moved.opcode == "fusion":
    given = {str(number): _without_copies(body, name) for number, name in enumerate(moved.operands)}
    inside = module.computations[moved.called("calls")]
    moved = inside.root
  if moved is None or moved.opcode not in ("add", "subtract"):
    return 1
  values = [_without_copies(inside, name) for name in moved.operands]
  values = [given.get(v.literal, v) if v is not None and v.opcode == "parameter" else v for v in values]
  steps = [int(v.literal) for v in values if v is not None and v.opcode == "constant"]
  return abs(steps[0]) or 1 if len(steps) == 1 else 1


def _without_copies(computation: Computation, name: str) -> Instruction | None:
  """Returns the instruction that makes a value, of copies and views of it what they are of."""
  found = computation.by_name.get(name)
  while found is not None and found.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
    found = computation.by_name.get(found.operands[0])
  return found


def _comparison(module: Module, condition: Computation) -> tuple[str, list[Instruction]] | None:
  """Returns the direction and the two values that a loop's condition compares.

  XLA may have put the comparison in a fusion.
  """
  root, inside, given = condition.root, condition, {}
  if root.opcode == "fusion":
    inside = module.computations[root.called("calls")]
    given = {str(number): condition.by_name[name] for number, name in enumerate(root.operands)}
    root = inside.root
  while root.opcode == "bitcast":
    root = inside.by_name[root.operands[0]]
  if root.opcode != "compare":
    return None
  values = [inside.by_name[name] for name in root.operands]
  values = [given.get(each.literal, each) if each.opcode == "parameter" else each for each in values]
  return re.search(r"direction=(\w+)", root.attributes)[1], values


def _constant(outer: Computation, loop: Instruction, value: Instruction) -> int | None:
  """Returns the integer that a value of a loop's condition has before the first trip."""
  if value.opcode == "constant":
    return int(value.literal) if re.fullmatch(r"-?\d+", value.literal) else None
  if value.opcode != "get-tuple-element":
    return None
  index = int(re.search(r"index=(\d+)", value.attributes)[1])
  initial = outer.by_name.get(loop.operands[0])
  if initial is None or initial.opcode != "tuple":
    return None
  found = _without_copies(outer, initial.operands[index])
  if found is None or found.opcode != "constant" or not re.fullmatch(r"-?\d+", found.literal):
    return None
  return int(found.literal)


def arrays_of(type_text: str) -> tuple[Array, ...]:
  """Returns the arrays of a value's type, those of a tuple one after the other."""
  found = []
  for match in _ARRAY.finditer(type_text):
    space = _MEMORY_SPACE.search(match[0])
    shape = tuple(int(n.removeprefix("<=")) for n in match[2].split(",") if n)
    found.append(Array(match[1], shape, int(space[1]) if space else 0, match[3] or ""))
  return tuple(found)


def _bits(dtype: str) -> int:
  if dtype in _BITS:
    return _BITS[dtype]
  width = re.match(r"[a-z]+(\d+)", dtype)  # f32, s8, c64, f8e4m3fn, ...
  return int(width[1]) if width else 0


def _parse(text: str) -> tuple[dict[str, Computation], str]:
  computations, entry = {}, ""
  name, instructions = "", []
  for line in text.splitlines():
    if line.startswith("}") and name:
      computations[name] = Computation(name, tuple(instructions))
      name, instructions = "", []
    elif name and (match := _INSTRUCTION.match(line)):
      instructions.append(_instruction(match[2], match[3], bool(match[1])))
    elif match := _HEADER.match(line):
      name, instructions = match[2], []
      entry = name if match[1] else entry
  return computations, entry


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
  end = _closing(rest) if rest.startswith("(") else rest.index(" ")
  type_text, rest = rest[:end], rest[end:].lstrip()
  opcode, _, rest = rest.partition("(")
  end = _closing("(" + rest)
  inside, attributes = rest[: end - 2], rest[end - 1 :]
  operands = () if opcode == "constant" else tuple(_NAME.findall(inside))
  return Instruction(name, type_text, opcode, operands, inside, attributes, is_root)


def _closing(text: str) -> int:
  """Returns the place after the parenthesis that closes the first character."""
  depth = 0
  for match in re.finditer(r"[()]", text):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return match.end()
  return len(text)


def _callee(instruction: Instruction) -> str | None:
  return instruction.called("calls") or instruction.called("to_apply")


def _branches(instruction: Instruction) -> list[str]:
  several = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
  if several:
    return _NAME.findall(several[1])
  return [instruction.called("true_computation"), instruction.called("false_computation")]
