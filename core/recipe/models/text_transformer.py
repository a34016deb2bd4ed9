"""The options of a transformer over the tokens of a text (Zhai et al. 2022)."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from core.errors import nearest
from core.recipe.models import vit
from core.recipe.models.options import Gelu, ModelOptions, RematPolicy, check_heads, named_variant
from core.recipe.types import Check, Count, Dtype, Layers, Positive, Rate, Refused, Tokens

# What published configs say for the same pooling.
_SYNONYMS = {"mean": "gap", "gmp": "max"}


def decode_variant(variant: str) -> dict[str, Any]:
  """Returns the options that `"B"` stands for: ViT's sizes.

  Raises:
    ValueError: there is no such variant.
  """
  if variant not in vit.VARIANTS:
    raise ValueError(f"there is no {variant!r}{nearest(variant, vit.VARIANTS)}")
  return vit.decode_variant(variant)


def _without_synonyms(pool_type: str) -> str:
  return _SYNONYMS.get(pool_type, pool_type)


Pooling = Annotated[
  Literal["last", "first", "gap", "map", "max", "mean", "gmp"],
  Check("one of 'last', 'first', 'gap' (or 'mean'), 'map', 'max' (or 'gmp')", _without_synonyms),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTransformer(ModelOptions):
  """A token embedding, a transformer encoder, a pooling and a linear head.

  Attributes:
    variant: the sizes of a published model, "B" or "So400m". Options that are given beside it take the place of the
      variant's.
    width: numbers a token.
    depth: blocks of the encoder.
    mlp_dim: width of the MLPs; None for four times `width`.
    num_heads: heads of each attention; they divide `width`.
    vocab_size: rows of the token embedding. 32,000 for c4_en, 250,000 for mC4, 256,000 for Gemma's tokenizer.
    max_len: the number of tokens of every text; None for whatever the first one has.
    posemb: position embedding, "learn" or "sincos" (fixed, for an even width).
    pool_type: the "last" token, the "first", "gap" mean, "max" of each channel, "map" attention pooling.
    head_bias: whether the head has a bias.
    head_zeroinit: start with a head of zeros.
    dropout: rate after each attention, each MLP's GELU and each MLP, in [0, 1).
    gelu: "tanh" (the approximation) or "exact".
    norm_eps: what each LayerNorm adds to the variance.
    scan: one compiled block that runs `depth` times, with its parameters stacked.
    remat_policy: what the forward pass keeps for the backward pass, a policy of `jax.checkpoint_policies`. None for
      "nothing_saveable" with `scan`, else for "none", which keeps everything.
    dtype_mm: dtype of the matrix products and activations.
  """

  TITLE: ClassVar[str] = "the model text_transformer"

  variant: named_variant(decode_variant, "B") | None = None
  width: Count = 512
  depth: Layers = 12
  mlp_dim: Count | None = None
  num_heads: Count = 8
  vocab_size: Tokens = 32_000
  max_len: Count | None = None
  posemb: Literal["learn", "sincos"] = "learn"
  pool_type: Pooling = "last"
  head_bias: bool = True
  head_zeroinit: bool = False
  dropout: Rate = 0.0
  gelu: Gelu = "tanh"
  norm_eps: Positive = 1e-6
  scan: bool = False
  remat_policy: RematPolicy | None = None
  dtype_mm: Dtype = "float32"

  @classmethod
  def defaults_for(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    return {} if given.get("variant") is None else decode_variant(given["variant"])

  def __post_init__(self) -> None:
    check_heads(self.width, self.num_heads)
    if self.posemb == "sincos" and self.width % 2:
      raise Refused(f"must be even for posemb='sincos', got {self.width}", key="width")
