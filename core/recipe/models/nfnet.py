"""The options of an NFNet (Brock et al. 2021, arXiv:2102.06171)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from core.recipe.models.options import Factor, Gelu, ModelOptions
from core.recipe.types import Count, Dtype, Layers, Rate, Refused


@dataclasses.dataclass(frozen=True)
class Published:
  """What tells the published models apart.

  Attributes:
    depth: blocks of each stage.
    dropout: its rate before the head.
    train_size: pixels a side of the images for training.
    test_size: pixels a side of the images for evaluation.
  """

  depth: tuple[int, int, int, int]
  dropout: float
  train_size: int
  test_size: int


# Brock et al. 2021, table 1 and appendix A: FN has N + 1 times the blocks of F0.
VARIANTS = {
  "F0": Published((1, 2, 6, 3), 0.2, 192, 256),
  "F1": Published((2, 4, 12, 6), 0.3, 224, 320),
  "F2": Published((3, 6, 18, 9), 0.4, 256, 352),
  "F3": Published((4, 8, 24, 12), 0.4, 320, 416),
  "F4": Published((5, 10, 30, 15), 0.5, 384, 512),
  "F5": Published((6, 12, 36, 18), 0.5, 416, 544),
  "F6": Published((7, 14, 42, 21), 0.5, 448, 576),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NFNet(ModelOptions):
  """A stem of four convolutions, stages of residual blocks, an expanding convolution, the mean and a linear head.

  Attributes:
    variant: depth and dropout of a published model, "F0" to "F6". Options that are given beside it take the place of
      the variant's.
    width: channels of each stage. The first keeps the size of the stem's output, each later one halves it.
    depth: blocks of each stage.
    stem_width: channels of the stem, a multiple of 8.
    final_width: channels of the last convolution.
    bottleneck: width inside a residual branch, relative to that of the stage.
    group_size: channels of a group of the 3x3 convolutions.
    se_ratio: units of squeeze and excitation, relative to the width.
    alpha: factor on the residual branches.
    activation: "gelu", "silu" or "relu".
    gelu: "tanh" (its approximation, as published) or "exact".
    dropout: rate before the head, in [0, 1).
    stoch_depth: rate in [0, 1) at which an example skips a residual branch. It grows linearly from 0 at the first
      block, and would be reached one block after the last.
    head_zeroinit: start with a head of zeros instead of normal values of deviation 0.01.
    dtype_mm: dtype of the convolutions and activations. Parameters and logits are float32.
  """

  TITLE: ClassVar[str] = "the model nfnet"

  variant: Literal["F0", "F1", "F2", "F3", "F4", "F5", "F6"] | None = None
  width: tuple[Count, ...] = (256, 512, 1536, 1536)
  depth: tuple[Layers, ...] = (1, 2, 6, 3)
  stem_width: Count = 128
  final_width: Count = 3072
  bottleneck: Factor = 0.5
  group_size: Count = 128
  se_ratio: Factor = 0.5
  alpha: Factor = 0.2
  activation: Literal["gelu", "silu", "relu"] = "gelu"
  gelu: Gelu = "tanh"
  dropout: Rate = 0.2
  stoch_depth: Rate = 0.25
  head_zeroinit: bool = False
  dtype_mm: Dtype = "float32"

  @classmethod
  def defaults_for(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    if given.get("variant") is None:
      return {}
    published = VARIANTS[given["variant"]]
    return dict(depth=published.depth, dropout=published.dropout)

  def __post_init__(self) -> None:
    if not self.width:
      raise Refused("must have one stage or more, got ()", key="width")
    if len(self.width) != len(self.depth):
      raise Refused(f"has {len(self.depth)} stages, and width has {len(self.width)}", key="depth")
    if self.stem_width % 8:
      raise Refused(f"must be a multiple of 8, got {self.stem_width}", key="stem_width")
    for width in self.width:
      inner = width * self.bottleneck
      if inner % self.group_size:
        raise Refused(
          f"{width} times bottleneck {self.bottleneck} is {inner:g}, no multiple of group_size {self.group_size}",
          key="width",
        )
