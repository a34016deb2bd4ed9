"""The ops of the pp language by name, and how to add one.

A project adds an op in a file that its `train.py` imports:

    from core.pp import registry

    @registry.key_op()
    def darken(by=10):
      "Takes `by` grey levels away."
      return lambda image: image - by

and its pp strings may say `decode|darken|resize(224)`, or `darken(20, key="depth")` for another key than "image", or
`darken(inkey="image", outkey="dark")`. The arguments are checked against the function's signature before anything runs,
so the outer function must not need TensorFlow. What it returns is run on one example's tensors while tf.data traces.

An op of several keys takes and returns the example, a dict:

    @registry.op()
    def mean_of(a, b, outkey="mean"):
      "The mean of two keys."
      return lambda data: {**data, outkey: (data[a] + data[b]) / 2}

A random op takes, last, a `core.pp.rng.Rng`. It is seeded by the example and by the op's place in the pp string, so
that a resumed run sees the same pixels; draws from `tf.random.uniform` and its like would not, so take none from there:

    @registry.key_op(random=True)
    def jitter(by=10.0):
      "Adds up to `by` grey levels."
      return lambda image, rng: image + rng.uniform(-by, by)

Data in memory need no TensorFlow: an op with a second form, on NumPy arrays with a leading batch dimension, runs there
too. `return OpFunctions(per_example, batched)` gives both; where one function serves both, `return both(function)`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class OpFunctions:
  """An op with its arguments bound: on one example's tensors, and (or None) on a batch of NumPy arrays."""

  per_example: Callable[..., Any]
  batched: Callable[..., Any] | None = None


def both(fn: Callable[..., Any]) -> OpFunctions:
  """The forms of a function that serves one example's tensors and a batch of arrays alike."""
  return OpFunctions(fn, fn)


@dataclasses.dataclass(frozen=True)
class Op:
  """A registered op: `make(*args, **kwargs)` gives functions of `(data)` or, if random, `(data, rng)`."""

  name: str
  make: Callable[..., OpFunctions]
  signature: inspect.Signature
  random: bool
  doc: str


OPS: dict[str, Op] = {}


def op(*, random: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Registers, under its own name, a factory of functions `data -> data` (`(data, rng) -> data` if random)."""

  def register(factory):
    _register(factory, lambda *args, **kwargs: _functions(factory(*args, **kwargs)), inspect.signature(factory), random)
    return factory

  return register


def key_op(
  *, key: str = "image", outkey: str | None = None, random: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Registers, under its own name, a factory of functions of one key's value, `(value, rng)` if random.

  The op's arguments are the factory's and, by name only, `key=`, or `inkey=` to read from and `outkey=` to write to.

  Args:
    key: what is read and written where none of them is given.
    outkey: what is written where neither `key=` nor `outkey=` is given, if not `key`.
    random: the functions take a `core.pp.rng.Rng`, last.
  """
  # As the op's signature is shown to people.
  defaults = {"key": None, "inkey": key, "outkey": outkey} if outkey else {"key": key, "inkey": None, "outkey": None}
  default, default_outkey = key, outkey or key

  def register(factory):
    def make(*args, key=None, inkey=None, outkey=None, **kwargs):
      source, target = inkey or key or default, outkey or key or default_outkey

      def on_key(fn):
        # `*rng` is the generator of a random op, and nothing for the others.
        return fn and (lambda data, *rng: {**data, target: fn(data[source], *rng)})

      functions = _functions(factory(*args, **kwargs))
      return OpFunctions(on_key(functions.per_example), on_key(functions.batched))

    signature = inspect.signature(factory)
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in defaults.items()]
    _register(factory, make, signature.replace(parameters=[*signature.parameters.values(), *extra]), random)
    return factory

  return register


class Example(dict):
  """An example as the ops see it: a dict whose missing keys are refused with the names of those that are there."""

  def __missing__(self, key: str) -> Any:
    raise UserError(f"no key {key!r}; the example has: {', '.join(sorted(map(str, self))) or 'nothing'}")


def _functions(made: Any) -> OpFunctions:
  return made if isinstance(made, OpFunctions) else OpFunctions(made)


def _register(factory, make, signature, random) -> None:
  name = factory.__name__
  if name in OPS:
    raise ValueError(f"pp op {name} is registered twice; give the one in {factory.__module__} another name")
  OPS[name] = Op(name, make, signature, random, inspect.getdoc(factory) or "")
