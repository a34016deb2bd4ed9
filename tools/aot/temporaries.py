"""Which arrays fill a device's memory when it is fullest, read from the order of a compiled program.

The compiler tells how many bytes its temporaries take, not what they are. An array lives from the instruction that
makes it to the last that reads it; loops and updates in place keep theirs. What is found is near the compiler's own
figure, not equal to it: the compiler's own packing is not told.
"""

import dataclasses
import re
from typing import Any

from tools.aot.hlo import Array, Computation, Instruction, Module

# `output_to_operand_aliasing={{3}: (1, {})}`: the third result is the first operand.
_ALIASED = re.compile(r"\{(\d*)\}: \((\d+), \{\d*\}\)")
_VIEWS = ("bitcast", "opt-barrier", "optimization-barrier", "while", "async-update")


@dataclasses.dataclass(frozen=True)
class Temporary:
  """An array that is alive at the fullest moment: its bytes, as stored; its type; the JAX operation that made it."""

  bytes: int
  type: str
  op_name: str
  in_loop: bool


@dataclasses.dataclass(frozen=True)
class Buffer:
  """The `number`-th array that the instruction `maker` makes."""

  maker: str
  number: int
  array: Array


def at_peak(module: Module) -> list[Temporary]:
  """Returns the arrays alive at the fullest moment, the largest first, but no arguments and results of the program."""
  return sorted(_Lifetimes(module).peak(module.entry, in_loop=False)[1], key=lambda each: -each.bytes)


class _Lifetimes:
  """Lifetimes in a program whose instructions are in the order in which they run."""

  def __init__(self, module: Module):
    self._module = module
    self._known: dict[str, tuple[int, list[Temporary]]] = {}

  def peak(self, name: str, *, in_loop: bool) -> tuple[int, list[Temporary]]:
    """Returns the bytes of a computation at its fullest, and the arrays that they are."""
    if name not in self._known:
      self._known[name] = self._peak(self._module.computations[name], in_loop)
    return self._known[name]

  def _peak(self, computation: Computation, in_loop: bool) -> tuple[int, list[Temporary]]:
    buffers: dict[str, Any] = {}  # Of each value: the arrays that it is, each by who made it; tuples as tuples.
    last: dict[Buffer, int] = {}
    for place, each in enumerate(computation.instructions):
      for operand in each.operands:
        last.update(dict.fromkeys(_flat(buffers.get(operand, ())), place))
      buffers[each.name] = self._buffers(each, buffers)
    # What a loop's body hands on has its place in the loop's state; what a program returns, among its arguments.
    returned = set(_flat(buffers[computation.root.name]))
    alive: dict[Buffer, Temporary] = {}
    best, at_best = 0, []
    for place, each in enumerate(computation.instructions):
      for made in _flat(buffers[each.name]):
        if made.maker == each.name and made not in returned and last.get(made, -1) > place:
          alive[made] = Temporary(made.array.padded_bytes, _shown(made.array), each.op_name, in_loop)
      inner, of_inner = self._inside(each, in_loop)
      total = inner + sum(one.bytes for one in alive.values())
      if total > best:
        best, at_best = total, [*alive.values(), *of_inner]
      alive = {key: one for key, one in alive.items() if last[key] > place}
    return best, at_best

  def _inside(self, instruction: Instruction, in_loop: bool) -> tuple[int, list[Temporary]]:
    if instruction.opcode == "while":
      return self.peak(instruction.called("body"), in_loop=True)
    if instruction.opcode == "call" and (called := instruction.called("to_apply")):
      return self.peak(called, in_loop=in_loop)
    return 0, []

  def _buffers(self, each: Instruction, buffers: dict[str, Any]) -> Any:
    """Returns the arrays that the value of an instruction is."""
    of = [buffers.get(name, ()) for name in each.operands]
    new = [Buffer(each.name, n, array) if array.space == 0 else () for n, array in enumerate(each.arrays)]
    if each.opcode in ("parameter", "constant"):
      return ()
    if each.opcode == "tuple":
      return tuple(of)
    if each.opcode == "get-tuple-element":
      index = int(each.attributes.partition("index=")[2].partition(",")[0])
      return of[0][index] if isinstance(of[0], tuple) and index < len(of[0]) else of[0]
    if each.opcode in _VIEWS or each.opcode.endswith("-done") or each.opcode == "dynamic-update-slice":
      return of[0]
    if each.opcode.endswith("-start") and len(new) > 1:
      return new[0] if each.opcode == "copy-start" else new[1]
    if each.opcode == "fusion":
      inside = self._module.computations[each.called("calls")]
      roots = (
        [inside.by_name[name] for name in inside.root.operands] if inside.root.opcode == "tuple" else [inside.root]
      )
      if len(roots) == len(new):
        updated = [_updated(inside, root) for root in roots]
        new = [fresh if number is None else of[number] for fresh, number in zip(new, updated)]
    for result, operand in _ALIASED.findall(each.attributes):
      new[int(result or 0)] = of[int(operand)]
    return tuple(new) if len(new) > 1 else new[0] if new else ()


def _updated(inside: Computation, root: Instruction) -> int | None:
  """Returns the number of the input in whose place a fusion puts a result, or that it hands on.

  None is for a new array.
  """
  while root.opcode in ("bitcast", "get-tuple-element", "dynamic-update-slice"):
    root = inside.by_name[root.operands[0]]
  return int(root.literal) if root.opcode == "parameter" else None


def _flat(buffers: Any) -> tuple[Buffer, ...]:
  return (buffers,) if isinstance(buffers, Buffer) else tuple(b for each in buffers for b in _flat(each))


def _shown(array: Array) -> str:
  return f"{array.dtype}[{','.join(map(str, array.shape))}]{array.layout}"
