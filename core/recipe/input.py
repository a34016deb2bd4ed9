"""The `input` of a config: one source, or a mixture of several."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from core.recipe import sources
from core.recipe.pp_string import PpString
from core.recipe.predicate import Predicate
from core.recipe.types import Count, OneOf, Positive, Refused, Text

_KEY = "config.input"
_OF_A_SOURCE = ("name", "path", "split", "source")
_WITH_A_KEY = ("pp", "pre_filter_fn", "post_filter_fn")
_OF_A_COMPONENT = (*_WITH_A_KEY, "shuffle_buffer_size", "cache_raw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
  """Several components of an input, `data={"a": 0.7, "b": 0.3}`.

  Attributes:
    extra: the weight of each component by name, above 0. They are shares of the batch, in any unit.
  """

  TITLE: ClassVar[str] = "a mixture"
  EXTRA: ClassVar[Mapping[str, Any]] = {"NAME": Annotated[Positive, "the weight of the component of that name."]}

  extra: dict[str, float] = dataclasses.field(default_factory=dict)

  @classmethod
  def extra_keys(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that a mixture has, its components' names."""
    return dict.fromkeys(filter(str.__instancecheck__, given), Positive)


def _default_data(data: Mapping[str, Any]) -> str:
  numbers = [value for value in data.values() if isinstance(value, int | float)]
  return "mixture" if numbers and not any(key in data for key in _OF_A_SOURCE) else sources.default(data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A component of a mixture as a config has it. What it leaves out, it takes from the input.

  Attributes:
    data: its source.
    shuffle_buffer_size: see the input. None: as the input's.
    cache_raw: see the input. None: as the input's.
    pp: see the input. None: as the input's.
    pre_filter_fn: see the input. None: as the input's.
    post_filter_fn: see the input. None: as the input's.
  """

  TITLE: ClassVar[str] = "a component of the input"

  data: sources.Source
  shuffle_buffer_size: Count | None = None
  cache_raw: bool | None = None
  pp: PpString | None = None
  pre_filter_fn: Predicate | None = None
  post_filter_fn: Predicate | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Component:
  """One source of the input and how its examples are made. Two are the same only if they are one object.

  Attributes:
    name: of a component of a mixture; empty where there is but one source.
    key: its path in the config, "config.input" or "config.input.NAME", for messages.
    weight: its share of a mixture, before normalization.
    data: the arguments of its source.
    pp: the preprocessing string.
    pp_key: the path in the config of `pp`, for messages.
    pre_filter_fn, post_filter_fn: conditions on its examples, before and after preprocessing. None: none.
    pre_filter_fn_key, post_filter_fn_key: the paths in the config of these, for messages.
    keep_only: the entries of its examples that are kept. None: all.
    shuffle_buffer_size: records held to shuffle, over all processes.
    cache_raw: hold the split whole, whatever its size.
    skip_errors: leave out what cannot be made an example.
  """

  name: str
  key: str
  weight: float
  data: sources.AnySource
  pp: str
  pp_key: str
  pre_filter_fn: str | None
  pre_filter_fn_key: str
  post_filter_fn: str | None
  post_filter_fn_key: str
  keep_only: tuple[str, ...] | None
  shuffle_buffer_size: int
  cache_raw: bool
  skip_errors: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
  """The input of a training run.

  Attributes:
    data: a source, such as dict(name="cifar10", split="train"); or the components of a mixture with their weights,
      dict(a=0.7, b=0.3), where `input.a` and `input.b` are dicts of data, shuffle_buffer_size, cache_raw and pp.
    batch_size: the number of examples a step over all processes.
    shuffle_buffer_size: records held to shuffle, over all processes. A split of no more is held whole.
    cache_raw: hold the split whole in memory, whatever its size.
    pp: the preprocessing string.
    pre_filter_fn: a condition on the examples as they are in the data, `label < 100` say; see `core.recipe.predicate`.
      The others are left out, and an epoch is those that remain. The data are read once at the start to find them.
    post_filter_fn: a condition on the examples that the preprocessing leaves. In the place of one that does not meet it
      comes the process's next that does, so that a batch may hold one twice. An epoch counts them all.
    keep_only: the entries of the examples that are kept, of which a mixture's components must have the same. None: all.
    skip_errors: count and leave out examples that cannot be made, instead of stopping.
    extra: the components of a mixture by name, `Part`s.
  """

  TITLE: ClassVar[str] = "the input"
  EXTRA: ClassVar[Mapping[str, Any]] = {"NAME": Annotated[Part, "the component of that name, where data is a mixture."]}

  data: Annotated[Any, OneOf("source", sources.SOURCES | {"mixture": Mixture}, default=_default_data)]
  batch_size: Count
  shuffle_buffer_size: Count = 250_000
  cache_raw: bool = False
  pp: PpString = ""
  pre_filter_fn: Predicate | None = None
  post_filter_fn: Predicate | None = None
  keep_only: tuple[Text, ...] | None = None
  skip_errors: bool = False
  extra: dict[str, Part] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if not isinstance(self.data, Mixture):
      return
    for name in self.data.extra:
      if name in _KEYS:
        raise Refused("is a key of the input; a component must have another name", key=f"data.{name}")
      if name not in self.extra:
        raise Refused("is missing; the mixture data names it", key=name)

  @classmethod
  def extra_keys(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that a mixture brings along: its components' names."""
    data = given.get("data")
    is_mixture = isinstance(data, Mapping) and (data.get("source") or _default_data(data)) == "mixture"
    names = filter(str.__instancecheck__, data) if is_mixture else ()
    return {name: Part for name in names if name not in (*_KEYS, "source")}

  def describe(self) -> str:
    """Returns the data in a few words: the name, path and split of its source, or the components of a mixture."""
    if isinstance(self.data, Mixture):
      return ", ".join(self.data.extra)
    path, named = getattr(self.data, "path", None), getattr(self.data, "name", None)
    return " ".join(filter(None, (path or named, getattr(self.data, "split", None))))

  @functools.cached_property
  def components(self) -> tuple[Component, ...]:
    """The components, with what they take from the input filled in; one where there is no mixture."""
    if not isinstance(self.data, Mixture):
      return (self._component("", 1.0, Part(data=self.data)),)
    return tuple(self._component(name, weight, self.extra[name]) for name, weight in self.data.extra.items())

  def _component(self, name: str, weight: float, part: Part) -> Component:
    key = f"{_KEY}.{name}" if name else _KEY
    own = {field: getattr(part, field) for field in _OF_A_COMPONENT}
    filled = {field: getattr(self, field) if value is None else value for field, value in own.items()}
    keys = {f"{field}_key": f"{_KEY if own[field] is None else key}.{field}" for field in _WITH_A_KEY}
    common = dict(keep_only=self.keep_only, skip_errors=self.skip_errors)
    return Component(name=name, key=key, weight=weight, data=part.data, **common, **keys, **filled)


_KEYS = tuple(field.name for field in dataclasses.fields(Input) if field.name != "extra")
