"""The options of BERT (Devlin et al. 2019)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from core.recipe.models.options import Gelu, ModelOptions, RematPolicy, check_heads
from core.recipe.types import Count, Dtype, Layers, Positive, Rate, Refused, Tokens

# Width, depth, MLP width, heads (Devlin et al. 2019, section 3).
VARIANTS = {"base": (768, 12, 3072, 12), "large": (1024, 24, 4096, 16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bert(ModelOptions):
  """BERT's encoder, its first token ([CLS]) and a linear head.

  Attributes:
    config: the sizes of a published model, "base" or "large". Options that are given beside it take the place of the
      variant's.
    variant: the same as `config`, which is the published name of the option.
    width: numbers a token.
    depth: blocks of the encoder.
    mlp_dim: width of the MLPs.
    num_heads: heads of each attention; they divide `width`.
    vocab_size: rows of the token embedding.
    max_len: rows of the position embedding, the most tokens that a text can have.
    head_zeroinit: start with a head of zeros.
    dropout: rate in [0, 1) after the embeddings, in the attention's weights, after each attention and each MLP.
    gelu: "tanh" (the approximation, as in the original release) or "exact", as transformers computes.
    norm_eps: what each LayerNorm adds to the variance.
    remat_policy: what each block keeps for the backward pass, a policy of `jax.checkpoint_policies`. None for
      everything.
    dtype_mm: dtype of the matrix products and activations.
  """

  TITLE: ClassVar[str] = "the model bert"

  config: Literal["base", "large"] | None = None
  variant: Literal["base", "large"] | None = None
  width: Count = 768
  depth: Layers = 12
  mlp_dim: Count = 3072
  num_heads: Count = 12
  vocab_size: Tokens = 30_522
  max_len: Count = 512
  head_zeroinit: bool = True
  dropout: Rate = 0.1
  gelu: Gelu = "tanh"
  norm_eps: Positive = 1e-12
  remat_policy: RematPolicy | None = None
  dtype_mm: Dtype = "float32"

  @classmethod
  def defaults_for(cls, given: Mapping[str, Any]) -> dict[str, Any]:
    sizes = VARIANTS[given.get("config") or given.get("variant") or "base"]
    return dict(zip(("width", "depth", "mlp_dim", "num_heads"), sizes))

  def __post_init__(self) -> None:
    if None not in (self.config, self.variant) and self.config != self.variant:
      raise Refused(f"config={self.config!r} and variant={self.variant!r} mean the same; give one")
    check_heads(self.width, self.num_heads)
