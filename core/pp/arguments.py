"""What pp ops take: the types of their arguments, and how a call's arguments are read by them.

An op declares its arguments by annotations, the types of `core.recipe.types` and those here. An argument without one is
taken as it is.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import Meta

from core.errors import UserError
from core.recipe.parse import parse
from core.recipe.types import Check

_LARGEST_FLOAT32 = 3.4e38


def _as_key(key: str) -> str:
  if "\0" in key or not key.isprintable():  # A lone surrogate is not printable either.
    raise ValueError("it is readable text")
  return key


def _as_new_key(key: str) -> str:
  if key.startswith("_"):
    raise ValueError("keys that begin with _ belong to the pipeline")
  return _as_key(key)


def _as_words(text: str) -> str:
  if "\0" in text:
    raise ValueError("it holds a NUL")
  text.encode()  # UnicodeEncodeError, of a lone surrogate, is a ValueError.
  return text


# A key of the example that is read, and one that is written.
Key = Annotated[str, Meta(min_length=1), Check("a key", _as_key)]
NewKey = Annotated[str, Meta(min_length=1), Check("a key", _as_new_key)]
Keys = Key | tuple[Key, ...]
NewKeys = NewKey | tuple[NewKey, ...]

# Sizes in pixels, (height, width) where there are two.
Pixels = Annotated[int, Meta(ge=1, le=16_384)]
Size = Pixels | tuple[Pixels, Pixels]
Margin = Annotated[int, Meta(ge=0, le=16_384)]

Percent = Annotated[float, Meta(gt=0, le=100)]
Ratio = Annotated[float, Meta(ge=0.001, le=1_000)]
Float32 = Annotated[float, Meta(ge=-_LARGEST_FLOAT32, le=_LARGEST_FLOAT32)]
PositiveFloat32 = Annotated[float, Meta(ge=1e-30, le=_LARGEST_FLOAT32)]
GreyLevel = Annotated[int, Meta(ge=0, le=255)]
Index = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Entries = Annotated[int, Meta(ge=1, le=2**31 - 1)]
NumClasses = Annotated[int, Meta(ge=1, le=2**24)]
Words = Annotated[str, Check("text", _as_words)]
# What stands in an example, where a pp string gives it.
Entry = Index | Float32 | Words
NumTokens = Annotated[int, Meta(ge=1, le=2**16)]

# The methods of `tf.image.resize`.
Method = Literal["nearest", "bilinear", "area", "gaussian", "bicubic", "lanczos3", "lanczos5", "mitchellcubic"]
# What becomes of a text that is empty.
Empty = Literal["refuse", "keep"]


def annotations_of(factory: Callable[..., Any]) -> dict[str, Any]:
  """Returns the annotations of a function's arguments; none where they name what is not there."""
  try:
    found = typing.get_type_hints(factory, include_extras=True)
  except Exception:  # A stranger's annotations may be anything; his op is then taken as one that has none.
    return {}
  return {name: kind for name, kind in found.items() if name != "return"}


def bind(signature: inspect.Signature, annotations: dict[str, Any], args: Any, kwargs: Any, op: str) -> Any:
  """Returns the `inspect.BoundArguments` of a call, each value as its annotation wants it.

  Args:
    signature: of the op.
    annotations: the types of its arguments by name.
    args: what the call gives by position.
    kwargs: what it gives by name.
    op: what begins a message: "pp op resize".

  Raises:
    UserError: too many arguments, too few, an unknown one, or a value that does not fit.
  """
  try:
    bound = signature.bind(*args, **kwargs)
  except TypeError as error:
    shown = f"{op.rpartition(' ')[2]}{signature}"
    raise UserError(f"{op}: {error}; it is {shown}") from None
  for name, value in bound.arguments.items():
    if name not in annotations:
      continue
    kind, parameter = annotations[name], signature.parameters[name]
    if parameter.kind is parameter.VAR_POSITIONAL:
      read = tuple(_read(kind, each, f"{op}: {name}[{i}]") for i, each in enumerate(value))
    elif parameter.kind is parameter.VAR_KEYWORD:
      read = {key: _read(kind, each, f"{op}: {key}") for key, each in value.items()}
    else:
      read = _read(kind, value, f"{op}: {name}")
    bound.arguments[name] = read
  return bound


def _read(kind: Any, value: Any, where: str) -> Any:
  try:
    return parse(kind, value, where)
  except TypeError:  # A type that no config holds: the op's own business.
    return value
