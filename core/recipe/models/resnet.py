"""The options of Big Transfer's ResNet-v2 (Kolesnikov et al. 2020) and of the post-activation ResNet beside it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from core.recipe.models.options import ModelOptions, named_variant
from core.recipe.types import Check, Count, Dtype, Refused

# Units in each block by depth (He et al. 2016, table 1; 26 and 200 follow the same pattern).
UNITS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


def decode_variant(variant: str) -> dict[str, Any]:
  """Returns the options that `"50x1"` (or `"R50x1"`, or `"50"` for width 1) stands for.

  Raises:
    ValueError: there is no such variant.
  """
  match = re.fullmatch(r"R?([0-9]{1,3})(?:x([1-9][0-9]{0,3}))?", variant)
  if match is None or int(match[1]) not in UNITS:
    raise ValueError(f"it is DEPTHxWIDTH, of the depths {', '.join(map(str, UNITS))}")
  return {"depth": int(match[1]), "width": float(match[2] or 1)}


def _in_groups(width: float) -> float:
  if width % 0.5:  # 64 channels of width 1 have 32 groups.
    raise ValueError("the groups of its group normalizations have as many channels each")
  return width


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiT(ModelOptions):
  """A root, blocks of post-activation residual units, the mean over the image and a linear head.

  Attributes:
    variant: depth and width of a published model, "50x1", "R50x1" or "50". Options that are given beside it take the
      place of the variant's.
    width: multiplies all numbers of channels, a multiple of 0.5.
    depth: layers of a published model, or the number of units in each block.
    head_zeroinit: start with a head of zeros.
    dtype_mm: dtype of the convolutions and activations. Parameters, the standardization of weights, GroupNorm's
      arithmetic and logits are float32.
  """

  TITLE: ClassVar[str] = "the model bit"

  variant: named_variant(decode_variant, "50x1") | None = None
  width: Annotated[float, Meta(gt=0, le=1e6), Check("a positive multiple of 0.5", _in_groups)] = 1.0
  depth: Literal[26, 50, 101, 152, 200] | tuple[Count, ...] = 50
  head_zeroinit: bool = True
  dtype_mm: Dtype = "float32"

  @classmethod
  def defaults_for(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    return {} if given.get("variant") is None else decode_variant(given["variant"])

  def __post_init__(self) -> None:
    if not self.units:
      raise Refused("must have one block or more, got ()", key="depth")

  @property
  def units(self) -> tuple[int, ...]:
    """Returns the number of units in each block."""
    return self.depth if isinstance(self.depth, tuple) else UNITS[self.depth]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet(BiT):
  """A root, blocks of residual units, GroupNorm, the mean over the image and a linear head.

  Attributes:
    root_padding: what the root's max pooling sees beyond the image: "zero", as the published weights of BiT expect it,
      or "-inf", nothing, as big_vision's `bit_paper` has it.
  """

  TITLE: ClassVar[str] = "the model resnet"

  root_padding: Literal["zero", "-inf"] = "zero"
