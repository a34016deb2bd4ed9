"""The options of a Vision Transformer (Dosovitskiy et al. 2021) and of a FlexiViT (Beyer et al. 2023)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from core.recipe.models.options import Gelu, ModelOptions, RematPolicy, Sides, check_heads, named_variant, sized_variant
from core.recipe.types import Count, Dtype, Layers, Positive, Rate, Refused, Whole

# Width, depth, MLP width, heads (Zhai et al. 2022, table 2; So400m: Alabdulmohsin et al. 2023).
VARIANTS = {
  "mu": (32, 1, 128, 2),
  "Ti": (192, 12, 768, 3),
  "S": (384, 12, 1536, 6),
  "M": (512, 12, 2048, 8),
  "B": (768, 12, 3072, 12),
  "L": (1024, 24, 4096, 16),
  "So400m": (1152, 27, 4304, 16),
  "H": (1280, 32, 5120, 16),
  "g": (1408, 40, 6144, 16),
  "g-opt": (1536, 40, 6144, 16),
  "G": (1664, 48, 8192, 16),
  "G-opt": (1536, 48, 8192, 16),
  "e": (1792, 56, 15360, 16),
}
SIZES = ("width", "depth", "mlp_dim", "num_heads")


def decode_variant(variant: str) -> dict[str, Any]:
  """Returns the options that `"S/16"` stands for; without `/patch` the patch size is not among them.

  Raises:
    ValueError: there is no such variant.
  """
  return sized_variant(variant, VARIANTS, SIZES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViT(ModelOptions):
  """Patches, a transformer encoder, a pooling and a linear head.

  Attributes:
    variant: the sizes of a published model and its patch size in pixels, "S/16", "So400m/14" or "B". Options that are
      given beside it take the place of the variant's.
    patch_size: height and width of a patch in pixels.
    width: numbers a token.
    depth: blocks of the encoder.
    mlp_dim: width of the MLPs; None for four times `width`.
    num_heads: heads of each attention; they divide `width`.
    posemb: position embedding, "learn" or "sincos2d" (fixed, for a width that 4 divides).
    rep_size: units of a tanh layer before the head; True for `width`, False for no such layer.
    dropout: rate after the position embedding, each attention, each MLP's GELU and each MLP, in [0, 1).
    stoch_depth: rate in [0, 1) at which an example skips the branches of the last block. It grows linearly from 0 at
      the first block.
    pool_type: "gap" mean of the tokens, "map" attention pooling, "tok" a class token, "0" the first token, "none".
    head_zeroinit: start with a head of zeros.
    gelu: "tanh" (the approximation) or "exact", which most models of PyTorch's world want.
    swiglu: MLPs gated by a SiLU instead of GELU, as in the largest DINOv2.
    qkv_bias: whether query, key and value have a bias. Those of a MAP head always do.
    registers: learned tokens beside the patches that no pooling reads (Darcet et al. 2024).
    fc_norm: the final LayerNorm after the mean of the tokens instead of before it; goes with `pool_type="gap"`.
    norm_eps: what each LayerNorm adds to the variance.
    scan: one compiled block that runs `depth` times, with its parameters stacked.
    remat_policy: what the forward pass keeps for the backward pass, a policy of `jax.checkpoint_policies`. None for
      "nothing_saveable" with `scan`, else for "none", which keeps everything.
    dtype_mm: dtype of the matrix products and activations. Parameters, LayerNorm, softmax and logits are float32.
  """

  TITLE: ClassVar[str] = "the model vit"

  variant: named_variant(decode_variant, "S/16") | None = None
  patch_size: Sides = (16, 16)
  width: Count = 768
  depth: Layers = 12
  mlp_dim: Count | None = None
  num_heads: Count = 12
  posemb: Literal["learn", "sincos2d"] = "learn"
  rep_size: bool | Whole = False
  dropout: Rate = 0.0
  stoch_depth: Rate = 0.0
  pool_type: Literal["gap", "map", "tok", "0", "none"] = "gap"
  head_zeroinit: bool = True
  gelu: Gelu = "tanh"
  swiglu: bool = False
  qkv_bias: bool = True
  registers: Whole = 0
  fc_norm: bool = False
  norm_eps: Positive = 1e-6
  scan: bool = False
  remat_policy: RematPolicy | None = None
  dtype_mm: Dtype = "float32"

  @classmethod
  def defaults_for(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    return {} if given.get("variant") is None else decode_variant(given["variant"])

  def __post_init__(self) -> None:
    check_heads(self.width, self.num_heads)
    if self.posemb == "sincos2d" and (self.width % 4 or self.width < 8):
      raise Refused(f"must be a multiple of 4 and at least 8 for posemb='sincos2d', got {self.width}", key="width")
    if self.swiglu and self.gelu != ViT.gelu:
      raise Refused("is of no effect where swiglu=True, whose MLPs have a SiLU; leave it out", key="gelu")
    if self.fc_norm and self.pool_type != "gap":
      raise Refused(f"goes with pool_type='gap', got {self.pool_type!r}", key="fc_norm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlexiViT(ViT):
  """A ViT that is told its sequence length.

  Attributes:
    variant: the sizes of a published ViT, "B". Options that are given beside it take the place of the variant's.
    patch_size: height and width in pixels of the patch at which the patch embedding is kept.
    posemb_size: rows and columns of the grid at which the position embedding is kept.
    seqhw: patches along the sides of an image, rows and columns. None for as many as patches of `patch_size` give.
  """

  TITLE: ClassVar[str] = "the model flexi_vit"

  patch_size: Sides = (32, 32)
  posemb_size: Sides = (7, 7)
  seqhw: Sides | None = None
