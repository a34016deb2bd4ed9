"""What the options of several families of models have in common: variants, sizes of patches, kinds of GELU."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from core.errors import UserError, nearest
from core.recipe import parse
from core.recipe.types import Check, Count, Refused, Text, Whole

# Outputs of a head; None or 0 for no head.
NumClasses = Whole | None

Gelu = Literal["tanh", "exact"]

# What a backward pass finds kept, by `jax.checkpoint_policies`. Of a ViT-L/16 with `scan`, 1,024 images in bfloat16 on
# 16 chips v5e (tools/aot): temporaries a chip, FLOPs computed again, MFU by the roofline.
#
#     none                               26.7 GiB   0 %          does not fit: the loop keeps each elementwise result
#     dots_saveable                      13.3 GB    0 %   91 %   each matrix product (checkpoint_dots is the same)
#     dots_with_no_batch_dims_saveable    7.5 GB    2 %   98 %   those with parameters: of attention, not its scores
#     nothing_saveable                    1.9 GB   23 %   81 %   the input of each block
RematPolicy = Literal[
  "none",
  "nothing_saveable",
  "everything_saveable",
  "dots_saveable",
  "checkpoint_dots",
  "dots_with_no_batch_dims_saveable",
  "checkpoint_dots_with_no_batch_dims",
]

# A factor of sizes or activations; of larger ones no number of the model is finite.
Factor = Annotated[float, Meta(gt=0, le=1e6)]


def _both(size: Any) -> tuple[int, int]:
  return size if isinstance(size, tuple) else (size, size)


# Of the height and of the width: two numbers, or one that is both.
Sides = Annotated[Count | tuple[Count, Count], Check("a whole number from 1 on, or (height, width)", _both)]


def named_variant(decode: Callable[[str], Any], example: str) -> Any:
  """Returns the type of a variant's name.

  Args:
    decode: of a name; raises ValueError with the reason if there is no such variant.
    example: a name, for messages.
  """

  def check(variant: str) -> str:
    decode(variant)
    return variant

  return Annotated[Text, Check(f"a variant, {example!r} for one", check)]


def sized_variant(variant: str, variants: Mapping[str, Sequence[int]], names: Sequence[str]) -> dict[str, Any]:
  """Returns the options that `"S/16"` stands for; without `/patch` the patch size is not among them.

  Args:
    variant: a key of `variants`, which may be followed by a patch size in pixels.
    variants: the sizes of each.
    names: the options that they are.

  Raises:
    ValueError: there is no such variant.
  """
  name, slash, patch = variant.partition("/")
  if name not in variants:
    raise ValueError(f"there is no {name!r}{nearest(name, variants)}")
  if slash and not (patch.isascii() and patch.isdecimal() and 0 < len(patch) < 7 and int(patch) > 0):
    raise ValueError(f"it must end in a patch size in pixels, as in '{name}/16'")
  return dict(zip(names, variants[name])) | ({"patch_size": (int(patch), int(patch))} if slash else {})


def check_heads(width: int, num_heads: int) -> None:
  """Refuses a width that the number of heads does not divide.

  Raises:
    Refused: it does not.
  """
  if width % num_heads:
    raise Refused(f"must be a multiple of num_heads, {num_heads}, got {width}", key="width")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
  """What the options of every family have.

  Attributes:
    stated: the keys that the config gives.
  """

  stated: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)


def changed(options: ModelOptions, changes: Mapping[str, Any], where: str) -> Any:
  """Returns the options of a model with some of them changed, and checked as those of a config are.

  Args:
    options: of one tower, a ViT for one.
    changes: options by name, `{"dtype_mm": "float32"}`. A variant changes no sizes.
    where: the path of `changes` in the config, for messages.

  Raises:
    UserError: an unknown option, or a value that it cannot have.
  """
  if not isinstance(changes, Mapping):
    raise UserError(f"{where} must be a dict, got {changes!r}")
  all_options = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
  stated = all_options.pop("stated") | changes.keys()
  return dataclasses.replace(parse.parse(type(options), all_options | dict(changes), where), stated=frozenset(stated))
