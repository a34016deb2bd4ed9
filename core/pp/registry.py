"""The ops of the pp language by name, and how to add one.

A project adds an op in a file that its `train.py` imports:

    from core.pp import registry
    from core.pp.arguments import GreyLevel

    @registry.key_op()
    def darken(by: GreyLevel = 10):
      "Takes `by` grey levels away."
      return lambda image: image - by

and its pp strings may say `decode|darken|resize(224)`, or `darken(20, key="depth")` for another key than "image", or
`darken(inkey="image", outkey="dark")`. The arguments are checked before anything runs: against the function's signature
and, where they have annotations, against those (see `core.pp.arguments`). So the outer function must not need
TensorFlow. What it returns is run on one example's tensors while tf.data traces.

An op of several keys takes and returns the example, a dict:

    @registry.op()
    def mean_of(a: Key, b: Key, outkey: NewKey = "mean"):
      "The mean of two keys."
      return lambda data: {**data, outkey: (data[a] + data[b]) / 2}

A random op takes, last, a `core.pp.rng.Rng`. It is seeded by the example and by the op's place in the pp string, so
that a resumed run sees the same pixels; draws from `tf.random.uniform` and its like would not, so take none from there:

    @registry.key_op(random=True)
    def jitter(by: Positive = 10.0):
      "Adds up to `by` grey levels."
      return lambda image, rng: image + rng.uniform(-by, by)

Data in memory need no TensorFlow: an op with a second form, on NumPy arrays with a leading batch dimension, runs there
too. `return OpFunctions(per_example, batched)` gives both; where one function serves both, `return both(function)`. A
third function, `accepts`, refuses on either path alike what the op is not for (see `core.pp.held`).
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from core.errors import UserError
from core.pp.arguments import Key, NewKey, annotations_of
from core.pp.held import of_batch, of_example


@dataclasses.dataclass(frozen=True)
class OpFunctions:
  """The functions of an op whose arguments are bound.

  Attributes:
    per_example: works on one example's tensors.
    batched: works on a batch of NumPy arrays; None where there is no such form.
    accepts: raises UserError for what the op is not for. It takes, of an op on a key, what the key holds, a `Held`; of
      an op on the example, a function from a key to what it holds.
  """

  per_example: Callable[..., Any]
  batched: Callable[..., Any] | None = None
  accepts: Callable[[Any], None] | None = None


def both(fn: Callable[..., Any], accepts: Callable[[Any], None] | None = None) -> OpFunctions:
  """Returns the forms of a function that serves one example's tensors and a batch of arrays alike."""
  return OpFunctions(fn, fn, accepts)


@dataclasses.dataclass(frozen=True)
class Op:
  """A registered op.

  Attributes:
    name: as pp strings have it.
    make: takes the arguments and gives functions of `(data)` or, if random, `(data, rng)`.
    signature: the arguments by name, without annotations, as people see it.
    annotations: the types of the arguments that have one.
    random: whether the functions take a generator.
    doc: the docstring.
  """

  name: str
  make: Callable[..., OpFunctions]
  signature: inspect.Signature
  annotations: dict[str, Any]
  random: bool
  doc: str


OPS: dict[str, Op] = {}


def op(*, random: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Registers, under its own name, a factory of functions `data -> data` (`(data, rng) -> data` if random)."""

  def register(factory):
    def make(*args, **kwargs):
      functions = _functions(factory(*args, **kwargs))

      def checked(fn, held_of):
        if fn is None or functions.accepts is None:
          return fn

        def on_example(data, *rng):  # The generator of a random op, and nothing for the others.
          functions.accepts(lambda key: held_of(data[key]))
          return fn(data, *rng)

        return on_example

      return OpFunctions(checked(functions.per_example, of_example), checked(functions.batched, of_batch))

    _register(factory, make, {}, random)
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
      if key and inkey and outkey:
        raise UserError("key has no meaning beside inkey and outkey; leave it out")
      source, target = inkey or key or default, outkey or key or default_outkey
      functions = _functions(factory(*args, **kwargs))

      def on_key(fn, held_of):
        if fn is None:
          return None

        def on_example(data, *rng):  # The generator of a random op, and nothing for the others.
          value = data[source]
          if functions.accepts is not None:
            functions.accepts(held_of(value))
          return {**data, target: fn(value, *rng)}

        return on_example

      return OpFunctions(on_key(functions.per_example, of_example), on_key(functions.batched, of_batch))

    _register(factory, make, defaults, random)
    return factory

  return register


class Example(dict):
  """An example as the ops see it: a dict whose missing keys are refused with the names of those that are there."""

  def __missing__(self, key: str) -> Any:
    raise UserError(f"no key {key!r}; the example has: {', '.join(sorted(map(str, self))) or 'nothing'}")


def _functions(made: Any) -> OpFunctions:
  return made if isinstance(made, OpFunctions) else OpFunctions(made)


def _register(factory, make, of_keys: dict[str, str | None], random: bool) -> None:
  """Registers an op whose arguments are the factory's and, by name only, `of_keys` with their defaults."""
  name = factory.__name__
  if name in OPS:
    raise ValueError(f"pp op {name} is registered twice; give the one in {factory.__module__} another name")
  own = [p.replace(annotation=p.empty) for p in inspect.signature(factory).parameters.values()]
  more = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value) for key, value in of_keys.items()]
  kinds = {"key": NewKey | None, "inkey": Key | None, "outkey": NewKey | None}
  annotations = annotations_of(factory) | {key: kinds[key] for key in of_keys}
  OPS[name] = Op(name, make, inspect.Signature([*own, *more]), annotations, random, inspect.getdoc(factory) or "")
