"""Mapping tables between our published names and another library's: each parameter is named once, for both directions.

A table is a list of rules. A rule says which of our parameters and which of theirs hold the same numbers, and how the
numbers lie on either side:

    Rule("Transformer/encoderblock_{i}/LayerNorm_0/scale", "blocks.{i}.norm1.weight")
    Rule("stem/kernel", "stem.proj.weight", CONV)
    Rule("block{b+1}/unit{u+1:02}/conv1/kernel", "stages.{b}.blocks.{u}.conv1.weight", CONV)
    Rule(("query/kernel", "key/kernel", "value/kernel"), "attn.qkv.weight", fused(TO_HEADS, 3))
    Rule((), "mask_token", constant(np.zeros((1, 32))))

- `{i}` (one letter) stands for a whole number, `{i+1}` for that number plus one, `{i+1:02}` for that with two digits.
- The third argument is a `Layout`, a pair of functions that undo each other: `to_published(*theirs) -> ours` and
  `to_foreign(*ours) -> theirs`, with an array for one name and a tuple for several (or none). What is not there to be
  undone (a LayerScale that is folded into a kernel) comes back in a form that computes the same.
- `optional=True` where a model may do without (a projection in the first unit of a block, a head). All the others must
  be there for every number that stands in the place of `{i}`.

What a family of models supplies is a module `core.models.foreign.FAMILY` with `FORMATS: dict[str, Format]` by library
("timm", "hf"), entered in `core.models.foreign.registry`. Such a module imports no model: the model is an argument, of
which it reads the attributes. Attention kernels come without the axis of heads, `[width, width]` for `[width, heads,
head_size]`, since no foreign file tells their number; `core.models.weights.split_heads` puts it in.
"""

import dataclasses
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from core.errors import UserError, first_few

Arrays = Mapping[str, np.ndarray]
Weight = Shaped[np.ndarray, "*inputs outputs"]
Vector = Shaped[np.ndarray, "outputs"]


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the same numbers lie in our arrays and in theirs: two functions that undo each other."""

  to_published: Callable[..., np.ndarray | tuple[np.ndarray, ...]]
  to_foreign: Callable[..., np.ndarray | tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True)
class Rule:
  """These parameters of ours are those of theirs, in that layout; `optional` where a model may lack them."""

  ours: str | tuple[str, ...]
  theirs: str | tuple[str, ...]
  layout: Layout = Layout(lambda array: array, lambda array: array)
  optional: bool = False

  def names(self, side: str) -> tuple[str, ...]:
    """Returns the name patterns of `side`, "ours" or "theirs"."""
    names = getattr(self, side)
    return (names,) if isinstance(names, str) else tuple(names)


@dataclasses.dataclass(frozen=True)
class Format:
  """One library's form of a family of models.

  Attributes:
    recognizes: whether a state dict (names without wrappers, see `core.checkpoint.state_dict`) is of this form.
    reading: the rules for a state dict that it recognizes. `UserError` where our model cannot compute the same.
    writing: the rules for a model of ours and an image size (height, width). `UserError` where the library has no such
      model.
    config: what the library's `config.json` holds for them.
    options: those of our model's options that change what is computed from a state dict but no parameter's shape, say
      `{"gelu": "exact"}`; the second argument is the `config.json` that came with it, or `{}`.
  """

  recognizes: Callable[[Arrays], bool]
  reading: Callable[[Arrays], Sequence[Rule]]
  writing: Callable[[Any, tuple[int, int]], Sequence[Rule]]
  config: Callable[[Any, tuple[int, int]], dict[str, Any]]
  options: Callable[[Arrays, Mapping[str, Any]], dict[str, Any]] = lambda state_dict, config: {}


SAME = Layout(lambda array: array, lambda array: array)
DENSE = Layout(np.transpose, np.transpose)  # [in, out] here, [out, in] there.
CONV = Layout(lambda oihw: oihw.transpose(2, 3, 1, 0), lambda hwio: hwio.transpose(3, 2, 0, 1))
# A dense layer to the heads (query, key, value), [in, heads, size] here; one from the heads (out), [heads, size, out].
TO_HEADS = Layout(np.transpose, lambda kernel: kernel.reshape(len(kernel), -1).T)
FROM_HEADS = Layout(np.transpose, lambda kernel: kernel.reshape(-1, kernel.shape[-1]).T)
FLAT = Layout(lambda array: array, lambda array: array.reshape(-1))  # A bias of each head's.


def fused(layout: Layout, parts: int) -> Layout:
  """Returns the layout of `parts` of our arrays (query, key, value) that are one of theirs, joined along axis 0."""
  return Layout(
    lambda whole: tuple(layout.to_published(part) for part in np.split(whole, parts)),
    lambda *ours: np.concatenate([layout.to_foreign(array) for array in ours]),
  )


def scaled(layout: Layout) -> Layout:
  """Returns the layout of a kernel and bias of ours that are a weight, a bias and a LayerScale of theirs, multiplied.

  Touvron et al. 2021, eq. 2.
  On the way out the scale is all ones.
  """

  def fold(weight: Weight, bias: Vector, scale: Vector) -> tuple[Weight, Vector]:
    scale = np.float32(scale)
    return layout.to_published(weight) * scale, bias * scale

  return Layout(fold, lambda kernel, bias: (layout.to_foreign(kernel), bias, np.ones_like(bias)))


def constant(value: Any) -> Layout:
  """Returns the layout of what only their model uses: dropped on the way in, `value` on the way out."""
  return Layout(lambda _: (), lambda: np.asarray(value))


def dropped(state_dict: Arrays, pattern: str) -> list[Rule]:
  """Returns rules that read past all that a regex matches whole: heads of the pre-training, counters and the like."""
  return [Rule((), name, constant(0)) for name in state_dict if re.fullmatch(pattern, name)]


def to_published(table: Sequence[Rule], state_dict: Arrays, *, source: str) -> dict[str, np.ndarray]:
  """Returns their arrays under our names and in our layouts.

  Raises:
    UserError: names that no rule knows, or that a rule misses; `source` begins the line.
  """
  return _translate(table, state_dict, "theirs", "ours", source)


def to_foreign(table: Sequence[Rule], published: Arrays, *, source: str) -> dict[str, np.ndarray]:
  """Returns our arrays (flat, blocks unstacked) under their names and in their layouts, each contiguous.

  Raises:
    UserError: names that no rule knows, or that a rule misses; `source` begins the line.
  """
  state_dict = _translate(table, published, "ours", "theirs", source)
  return {name: np.ascontiguousarray(array) for name, array in state_dict.items()}


def recognize(formats: Mapping[str, Format], state_dict: Arrays, *, source: str) -> Format:
  """Returns the first of a family's formats that recognizes a state dict.

  Raises:
    UserError: none does.
  """
  for form in formats.values():
    if form.recognizes(state_dict):
      return form
  names = first_few(sorted(state_dict), rest=" and {} more names")
  raise UserError(f"{source}: not weights that are known here (known: {', '.join(formats)}'s); it holds {names}")


def _translate(table: Sequence[Rule], named: Arrays, here: str, there: str, source: str) -> dict[str, np.ndarray]:
  parts, surplus = _assign(table, named, here)
  missing = [name for name in _expected(table, parts, here) if name not in named]
  differences = [("it lacks", missing), ("it has besides", surplus)]
  if told := [f"{what} {first_few(sorted(names))}" for what, names in differences if names]:
    raise UserError(f"{source}: not the parameters of this kind of model: {'; '.join(told)}")
  translated = {}
  for rule, number in parts:
    convert = rule.layout.to_published if there == "ours" else rule.layout.to_foreign
    names = [_fill(name, number) for name in rule.names(here)]
    try:
      results = convert(*(named[name] for name in names))
    except (ValueError, IndexError, TypeError):  # An array of other axes than the rule's.
      told = ", ".join(f"{name} {list(np.shape(named[name]))}" for name in names)
      raise UserError(f"{source}: not the parameters of this kind of model: the shape of {told}") from None
    results = results if isinstance(results, tuple) else (results,)
    translated.update(zip((_fill(name, number) for name in rule.names(there)), results, strict=True))
  return translated


Numbers = tuple[tuple[str, int], ...]  # (("i", 3),): the 3 stands for {i}.


def _assign(table: Sequence[Rule], named: Arrays, side: str) -> tuple[list[tuple[Rule, Numbers]], list[str]]:
  """Returns the (rule, numbers) of the names, each once and in the order of the table; and names of no rule."""
  # A rule without names on this side (a constant of the other) always applies.
  found = {(index, ()): None for index, rule in enumerate(table) if not rule.names(side)}
  patterns = [(_pattern(name), index) for index, rule in enumerate(table) for name in rule.names(side)]
  surplus = []
  for name in named:
    matches = ((index, numbers) for pattern, index in patterns if (numbers := _numbers(pattern, name)) is not None)
    if (match := next(matches, None)) is None:
      surplus.append(name)
    else:
      found[match] = None
  return [(table[index], numbers) for index, numbers in sorted(found)], surplus


def _expected(table: Sequence[Rule], parts: Iterable[tuple[Rule, Numbers]], side: str) -> list[str]:
  """Returns every name that should be there: of rules touched, and of rules that are not optional for all numbers."""
  numbers_seen = defaultdict(set)
  touched = set()
  for rule, numbers in parts:
    touched.add((rule, numbers))
    if not rule.optional:
      numbers_seen[tuple(letter for letter, _ in numbers)].add(numbers)
  for rule in table:
    letters = tuple(sorted({match[1] for name in rule.names(side) for match in _PLACE.finditer(name)}))
    if not rule.optional:
      touched.update((rule, numbers) for numbers in (numbers_seen[letters] if letters else [()]))
  return [_fill(name, numbers) for rule, numbers in touched for name in rule.names(side)]


_PLACE = re.compile(r"\{([a-z])(?:\+(\d+))?(?::0(\d))?\}")


@functools.cache
def _pattern(template: str) -> tuple[re.Pattern, dict[str, int]]:
  """Returns a regex for the names of a template, and what to take off each number in it."""
  literals = _PLACE.split(template)[::4]
  places = list(_PLACE.finditer(template))
  regex = "".join(
    re.escape(literal) + (f"(?P<{place[1]}>\\d+)" if place else "")
    for literal, place in itertools.zip_longest(literals, places)
  )
  return re.compile(regex), {place[1]: int(place[2] or 0) for place in places}


def _numbers(pattern: tuple[re.Pattern, dict[str, int]], name: str) -> Numbers | None:
  regex, offsets = pattern
  match = regex.fullmatch(name)
  return match and tuple((letter, int(match[letter]) - offset) for letter, offset in sorted(offsets.items()))


def _fill(template: str, numbers: Numbers) -> str:
  values = dict(numbers)
  return _PLACE.sub(lambda place: f"{values[place[1]] + int(place[2] or 0):0{place[3] or 1}d}", template)
