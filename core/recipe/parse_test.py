"""A dict becomes a dataclass, or one line says what does not fit and where."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import ml_collections
import numpy as np
import pytest

from core.errors import UserError
from core.recipe.duration import Duration, Length, steps
from core.recipe.parse import parse
from core.recipe.types import Count, Integer, NonNegative, OneOf, Refused, Rules, Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolution:
  """A kind of model.

  Attributes:
    width: the number of channels. More of them
      cost more.
    padding: how edges are treated.
  """

  TITLE: ClassVar[str] = "the model convolution"

  width: Count
  padding: Literal["same", "valid"] = "same"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
  bias: NonNegative | None = None
  names: tuple[Text, ...] | Text = ()

  def __post_init__(self):
    if self.bias == 3:
      raise Refused("must not be three", key="bias")


KINDS = {"convolution": Convolution, "linear": Linear, "dense": Linear}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  total: Length
  ckpt: Duration = steps(1_000)
  keep: Duration | None = None
  model_name: str = "convolution"
  model: Annotated[Any, OneOf("model_name", KINDS, beside=True)]
  rules: Rules[NonNegative] = ()
  each: dict[str, Annotated[Any, OneOf("type", KINDS, default="linear")]] = dataclasses.field(default_factory=dict)
  mesh: Literal["auto"] | tuple[tuple[Text, Integer], ...] = "auto"
  head: Linear | None = None
  flag: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
  batch: Count
  extra: dict[str, Any]

  @classmethod
  def extra_keys(cls, given):
    return dict.fromkeys(given.get("parts", ()), Linear) | {"parts": tuple[Text, ...]}


BASE = dict(total_steps=3, model=dict(width=1))


def test_every_kind_of_value_is_read():
  given = dict(
    total_epochs=2,
    ckpt_percent=0.5,
    model_name="dense",
    model=dict(names=["a", "b"]),
    rules=[("a/.*", 1), (".*", 0.5)],
    each=dict(x=dict(bias=1), y=dict(type="convolution", width=np.int32(8))),
    mesh=[["data", -1]],
    head={},
  )
  found = parse(Run, ml_collections.ConfigDict(given))
  assert (found.total, found.ckpt, found.keep) == (Duration(2, "epochs"), Duration(0.5, "percent"), None)
  assert found.model == Linear(names=("a", "b"))
  assert found.rules == (("a/.*", 1.0), (".*", 0.5))
  assert found.each == {"x": Linear(bias=1.0), "y": Convolution(width=8)}
  assert (found.mesh, found.head) == ((("data", -1),), Linear())


def test_keys_that_others_bring_along_are_collected():
  found = parse(Mixture, dict(batch=2, parts=["a", "b"], a=dict(bias=1), b={}))
  assert found.extra == {"parts": ("a", "b"), "a": Linear(bias=1), "b": Linear()}
  with pytest.raises(UserError, match=r"config\.c is no key \(known: a, batch, parts\)"):
    parse(Mixture, dict(batch=2, parts=["a"], a={}, c={}))


def test_a_duration_says_what_it_is_called_when_it_cannot_be_steps():
  assert parse(Run, BASE).total.steps() == 3
  with pytest.raises(UserError, match=r"config\.ckpt_epochs .* give config\.ckpt_steps"):
    parse(Run, BASE | dict(ckpt_epochs=1)).ckpt.steps()


@pytest.mark.parametrize(
  "given, line",
  [
    (dict(total_epochs=2), "config: total_steps and total_epochs are both set; keep one of them"),
    (dict(total_percent=0.1), "config.total_percent is no key (did you mean 'ckpt_percent'?)"),
    (dict(total_steps=None), "config.total_steps must be a number that is not negative, got None"),
    (dict(ckpt_percent=2), "config.ckpt_percent must be a number in [0, 1], got 2"),
    (dict(model=None), "config.model must be a dict, got None"),
    (dict(model={}), "config.model.width is missing; it is the number of channels (a whole number from 1 on)"),
    (dict(model_name="liner"), "config.model_name: there is no 'liner' (did you mean 'linear'?)"),
    (dict(model=dict(width=True)), "config.model.width must be a whole number from 1 on, got True"),
    (dict(model=dict(width=2**70)), f"config.model.width must be a whole number from 1 on, got {2**70}"),
    (dict(model=dict(width=1, wdth=2)), "config.model.wdth is no key of the model convolution (did you mean 'width'?)"),
    (dict(rules=[("a", 1), ("[", 2)]), "config.rules[1][0] must be a regular expression, got '[': unterminated"),
    (dict(rules=[("a", -1)]), "config.rules[0][1] must be a number that is not negative, got -1"),
    (dict(rules="a"), "config.rules must be a list of (a regular expression, a number that is not negative), got 'a'"),
    (dict(rules=[("a",)]), "config.rules[0] must be (a regular expression, a number that is not negative), got ('a',)"),
    (dict(each=dict(v=dict(type="x"))), "config.each.v.type: there is no 'x' (known: convolution, dense, linear)"),
    (dict(each=dict(v=dict(type=3))), "config.each.v.type: there is no 3"),
    (dict(each=dict(v=dict(bias=3))), "config.each.v.bias must not be three"),
    (dict(each=dict(v=dict(names=3))), "config.each.v.names must be a list of texts or text that is not empty, got 3"),
    (dict(each=5), "config.each must be a dict of dicts, got 5"),
    (dict(each={3: 4}), "config.each: keys are text, and 3 is none"),
    (dict(mesh="aut"), "config.mesh must be 'auto' or a list of (text that is not empty, a whole number), got 'aut'"),
    (dict(mesh=[("a", 1.5)]), "config.mesh[0][1] must be a whole number, got 1.5"),
    (dict(head=dict(bias=float("nan"))), "config.head.bias must be a number that is not negative, got nan"),
    (dict(head=dict(bias=float("inf"))), "config.head.bias must be a number that is not negative, got inf"),
    (dict(head=[1]), "config.head must be a dict or None, got (1,)"),
    (
      dict(model=dict(width=1, padding="vald")),
      "config.model.padding must be one of 'same', 'valid', got 'vald' (did",
    ),
    (dict(model=dict(width="\ud800")), "config.model.width must be a whole number from 1 on, got '\\ud800'"),
    (dict(flag=1), "config.flag must be True or False, got 1"),
    ({3: 4}, "config: keys are text, and 3 is none"),
  ],
)
def test_what_does_not_fit_is_refused_by_its_path(given, line):
  with pytest.raises(UserError) as error:
    parse(Run, BASE | given)
  assert str(error.value).startswith(line)


@pytest.mark.parametrize("value", ["z" * 1_000, [["x"] * 1_000] * 1_000, {"y" * 500: 1}, "a\nb" * 200])
def test_a_line_is_one_line_however_long_the_value(value):
  for key in ("model", "mesh", "flag", "head"):
    with pytest.raises(UserError) as error:
      parse(Run, BASE | {key: value})
    assert len(str(error.value)) <= 300
    assert "\n" not in str(error.value)


def test_a_dict_that_holds_itself_is_refused():
  ring = {}
  ring["a"] = ring["b"] = ring
  with pytest.raises(UserError, match="nested too deeply"):
    parse(Run, ring)
