"""What a config may say of a model: its options and variants, checked before anything is computed."""

import dataclasses
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.errors import UserError, nearest


def known(module: type, options: Iterable[str], *, what: str) -> None:
  """Refuses options that are no fields of a flax module; `what` names the model in the message.

  Raises:
    UserError: it names the first.
  """
  fields = {field.name for field in dataclasses.fields(module) if field.init}
  for option in options:
    if option not in fields:
      raise UserError(f"model: {what} has no option {option!r}{nearest(option, fields - {'name', 'parent'})}")


def sized_variant(
  variant: str | None, variants: Mapping[str, Sequence[int]], names: Sequence[str], *, what: str
) -> dict[str, Any]:
  """The options that `"S/16"` stands for; without `/patch` the patch size keeps its default; `{}` for None.

  Args:
    variant: a key of `variants`, which may be followed by a patch size in pixels.
    variants: the sizes of each.
    names: the options that they are.
    what: names the model in messages.

  Raises:
    UserError: it is none.
  """
  if variant is None:
    return {}
  name, slash, patch = str(variant).partition("/")
  if name not in variants:
    raise UserError(f"model: unknown {what} variant {variant!r}{nearest(name, variants)}")
  if slash and not (patch.isdecimal() and int(patch) > 0):
    raise UserError(f"model: {what} variant {variant!r} must end in a patch size in pixels, '{name}/16' for one")
  return dict(zip(names, variants[name])) | ({"patch_size": (int(patch), int(patch))} if slash else {})


def pair(size: int | Sequence[int]) -> tuple[int, ...]:
  """A patch size as (height, width): one number is both."""
  return tuple(size) if isinstance(size, Sequence) else (size, size)


def check_choices(model: Any, choices: Mapping[str, Sequence[Any]]) -> None:
  """Refuses a value of an option that is not among its `choices`.

  Raises:
    UserError: it lists them.
  """
  for option, allowed in choices.items():
    if (value := getattr(model, option)) not in allowed:
      raise UserError(f"model: {option} must be one of {', '.join(filter(None, allowed))}; got {value!r}")


def check_positive(model: Any, *names: str) -> None:
  """Refuses sizes that are no whole numbers from 1 on.

  Raises:
    UserError: it names the first.
  """
  for option in names:
    if not is_positive(value := getattr(model, option)):
      raise UserError(f"model: {option} must be a positive whole number, got {value!r}")


def is_positive(value: Any) -> bool:
  """Whether it is a whole number from 1 on."""
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_flags(model: Any, *names: str) -> None:
  """Refuses what is neither True nor False.

  Raises:
    UserError: it names the first.
  """
  for option in names:
    if not isinstance(value := getattr(model, option), bool):
      raise UserError(f"model: {option} must be True or False, got {value!r}")


def check_rates(model: Any, *names: str) -> None:
  """Refuses rates outside [0, 1).

  Raises:
    UserError: it names the first.
  """
  for option in names:
    if not isinstance(value := getattr(model, option), numbers.Real) or not 0 <= value < 1:
      raise UserError(f"model: {option} must be a number in [0, 1), got {value!r}")


def check_patch_size(model: Any) -> None:
  """Refuses a `patch_size` that is not two positive whole numbers.

  Raises:
    UserError: it is not.
  """
  if len(model.patch_size) != 2 or not all(map(is_positive, model.patch_size)):
    raise UserError(f"model: patch_size must be a number of pixels or (height, width), got {model.patch_size!r}")


def check_heads(model: Any) -> None:
  """Refuses a `width` that `num_heads` does not divide.

  Raises:
    UserError: it does not.
  """
  if model.width % model.num_heads:
    raise UserError(f"model: width {model.width} is not divisible by num_heads {model.num_heads}")
