"""The options of an MLP-Mixer (Tolstikhin et al. 2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from core.recipe.models.options import Gelu, ModelOptions, Sides, named_variant, sized_variant
from core.recipe.types import Count, Dtype, Rate

# Hidden width, blocks, width of the token-mixing MLP and of the channel-mixing MLP (Tolstikhin et al. 2021, table 1).
VARIANTS = {
  "S": (512, 8, 256, 2048),
  "B": (768, 12, 384, 3072),
  "L": (1024, 24, 512, 4096),
  "H": (1280, 32, 640, 5120),
}
_SIZES = ("hidden_dim", "num_blocks", "tokens_mlp_dim", "channels_mlp_dim")


def decode_variant(variant: str) -> dict[str, Any]:
  """Returns the options that `"S/16"` stands for; without `/patch` the patch size is not among them.

  Raises:
    ValueError: there is no such variant.
  """
  return sized_variant(variant, VARIANTS, _SIZES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixer(ModelOptions):
  """Patches, mixer blocks, LayerNorm, the mean of the patches and a linear head.

  Attributes:
    variant: the sizes of a published model and its patch size in pixels, "B/16" or "S". Options that are given beside
      it take the place of the variant's.
    patch_size: height and width of a patch in pixels.
    hidden_dim: numbers a patch, C in the paper's table 1.
    num_blocks: blocks, "number of layers" in the table.
    tokens_mlp_dim: width of the MLPs along the patches, D_S in the table.
    channels_mlp_dim: width of the MLPs along the features, D_C in the table.
    stoch_depth: rate in [0, 1) at which an example skips the branches of the last block. It grows linearly from 0 at
      the first block. What is kept is not rescaled, as in the published models.
    head_zeroinit: start with a head of zeros.
    gelu: "tanh", the approximation of the published weights, or "exact", which timm computes.
    dtype_mm: dtype of the matrix products and activations. Parameters, LayerNorm and logits are float32.
  """

  TITLE: ClassVar[str] = "the model mixer"

  variant: named_variant(decode_variant, "B/16") | None = None
  patch_size: Sides = (16, 16)
  hidden_dim: Count = 768
  num_blocks: Count = 12
  tokens_mlp_dim: Count = 384
  channels_mlp_dim: Count = 3072
  stoch_depth: Rate = 0.0
  head_zeroinit: bool = True
  gelu: Gelu = "tanh"
  dtype_mm: Dtype = "float32"

  @classmethod
  def defaults_for(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    return {} if given.get("variant") is None else decode_variant(given["variant"])
