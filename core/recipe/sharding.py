"""Where arrays live: the keys of a config that core.sharding reads."""

import ast
import collections
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from core.errors import UserError, nearest
from core.recipe.parse import parse, plain
from core.recipe.types import Check, Integer, NonNegative, Refused, Rules, Text

# The kinds of dimensions that activations have.
Activation = Literal["act_batch", "act_len", "act_emb", "act_heads", "act_mlp", "act_classes"]

_FORMS = "\"replicate\", \"fsdp(axis='data')\" or mesh axes by dimension, (None, 'model') say"
_LONGEST_STRATEGY = 500  # Characters.


def _twice(names: Sequence[Any]) -> Any:
  """Returns a name that occurs more than once, or None."""
  return next((name for name, count in collections.Counter(names).items() if count > 1), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fsdp:
  """A strategy: a parameter is split over mesh axes along its largest dimensions that they divide.

  Attributes:
    axis: the mesh axis, or several. None is "fsdp", or where there is none the mesh's first.
    tensor: the dimension that goes over the mesh axis "tensor", if it divides. -1 is the last.
    min_size_to_shard_mb: the least size in MiB of an array that is split; smaller ones stay whole.
  """

  TITLE: ClassVar[str] = "fsdp"

  axis: Text | tuple[Text, ...] | None = None
  tensor: Integer | None = None
  min_size_to_shard_mb: NonNegative = 4.0

  def __post_init__(self):
    axes = (self.axis,) if isinstance(self.axis, str) else self.axis
    if axes is None:
      return
    if not axes:
      raise Refused("must name a mesh axis", key="axis")
    if (name := _twice(axes)) is not None:
      raise Refused(f"names {name!r} twice", key="axis")
    if self.tensor is not None and "tensor" in axes:
      raise Refused("names 'tensor', over which the option tensor splits already", key="axis")

  def __str__(self) -> str:
    """Returns it as a config has it: `"fsdp(axis='data')"`."""
    options = [(field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)]
    return f"fsdp({', '.join(f'{name}={value!r}' for name, value, default in options if value != default)})"


def read_strategy(how: str) -> Literal["replicate"] | Fsdp:
  """Reads `"replicate"` or `"fsdp(axis='data')"`.

  Raises:
    ValueError: it is neither, or an option of fsdp is wrong.
  """
  if len(how) > _LONGEST_STRATEGY:
    raise ValueError(f"it has {len(how)} characters")
  try:
    node = ast.parse(how, mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    kind, keys = call.func.id, [keyword.arg for keyword in call.keywords]
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    readable = not call.args and None not in keys
  except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
    readable = False
  if not readable:
    raise ValueError("cannot read it")
  if (key := _twice(keys)) is not None:
    raise ValueError(f"{key} is given twice")
  if kind == "replicate":
    if options:
      raise ValueError("replicate has no options")
    return "replicate"
  if kind != "fsdp":
    raise ValueError(f"there is no strategy {kind!r}{nearest(kind, ('fsdp', 'replicate'))}")
  try:
    return parse(Fsdp, plain(options), "fsdp")
  except UserError as error:
    raise ValueError(f"{error}") from None


def _are_distinct(axes: tuple[str | None, ...]) -> tuple[str | None, ...]:
  if not axes:
    raise ValueError("it names no dimension; write 'replicate'")
  if (name := _twice([axis for axis in axes if axis is not None])) is not None:
    raise ValueError(f"{name!r} splits one dimension only")
  return axes


def _is_mesh(axes: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
  names, sizes = [name for name, _ in axes], [size for _, size in axes]
  if not axes:
    raise ValueError("it has no axis")
  if (name := _twice(names)) is not None:
    raise ValueError(f"{name!r} stands there twice")
  if sizes.count(-1) > 1:
    raise ValueError("one size alone can be -1 and take what is left")
  return axes


def _is_size(size: int) -> int:
  if size < 1 and size != -1:
    raise ValueError("no axis has that size")
  return size


def _are_rules(rules: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
  if (kind := _twice([kind for kind, _ in rules])) is not None:
    raise ValueError(f"{kind!r} has two rules")
  for kind, axes in rules:
    if kind == "act_batch" and not axes:
      raise ValueError("'act_batch' names no axis, and a batch is split over one at least")
    if isinstance(axes, tuple) and (name := _twice(axes)) is not None:
      raise ValueError(f"{kind!r} names {name!r} twice")
  return rules


Size = Annotated[Integer, Check("a whole number above 0, or -1 for what is left", _is_size)]
Mesh = Annotated[tuple[tuple[Text, Size], ...], Check("a list of (axis, size), [('data', -1)] say", _is_mesh)]
Strategy = (
  Annotated[str, Check(_FORMS, read_strategy)] | Annotated[tuple[Text | None, ...], Check(_FORMS, _are_distinct)]
)
ActivationRules = Annotated[
  tuple[tuple[Activation, Text | tuple[Text, ...] | None], ...],
  Check("a list of (kind of dimension, mesh axes), [('act_batch', ('data',))] say", _are_rules),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharding:
  """The keys of meshes and shardings, which stand at the top of a config.

  Attributes:
    mesh: the axes of the device mesh as (name, size), of which one size may be -1 and take the devices that are left.
      "auto" chooses sizes that suit the model, its optimizer and the batch.
    sharding_strategy: how parameters are split by regex over their names: "replicate", "fsdp(axis='data')", or the
      mesh axes of the last dimensions. What no regex matches is whole on each device; without rules the mesh decides.
    sharding_rules: the mesh axes over which each kind of dimension of activations is split, beside those of the mesh.
  """

  mesh: Literal["auto"] | Mesh = "auto"
  sharding_strategy: Rules[Strategy] = ()
  sharding_rules: ActivationRules = ()
