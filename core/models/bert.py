"""BERT (Devlin et al. 2019) as a text tower: its encoder, the first token, a linear head; post-LN, as published.

Parameters carry the names of the published LiT files (Zhai et al. 2022).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from core import trees
from core.checkpoint import catalog, tf_checkpoint
from core.errors import UserError, nearest
from core.models import options, text_transformer, weights
from core.models.foreign import bert as foreign_bert
from core.models.layers import GELUS, REMAT_POLICIES, Intermediates
from core.sharding import constrain

# Width, depth, MLP width, heads (Devlin et al. 2019, section 3).
VARIANTS = {"base": (768, 12, 3072, 12), "large": (1024, 24, 4096, 16)}

_CHOICES = {"gelu": GELUS, "remat_policy": (None, *REMAT_POLICIES), "dtype_mm": ("float32", "bfloat16")}
_INIT = nn.initializers.truncated_normal(0.02)


def Model(
  num_classes: int | None = None, *, config: str | None = None, variant: str | None = None, **kw: Any
) -> "Bert":
  """The BERT of `config` (the published name of the option) or `variant`, "base" or "large".

  Options in `kw` (the fields of `Bert`) override the variant's.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  if None not in (config, variant) and config != variant:
    raise UserError(f"model: config={config!r} and variant={variant!r} of BERT mean the same; give one")
  name = config or variant or "base"
  if name not in VARIANTS:
    raise UserError(f"model: unknown BERT variant {name!r}{nearest(str(name), VARIANTS)}")
  given = dict(zip(("width", "depth", "mlp_dim", "num_heads"), VARIANTS[name])) | kw
  options.known(Bert, given, what="BERT")
  model = Bert(num_classes, **given)
  _check(model)
  return model


def _check(model: "Bert") -> None:
  options.check_choices(model, _CHOICES)
  options.check_positive(model, "width", "depth", "mlp_dim", "num_heads", "vocab_size", "max_len")
  options.check_flags(model, "head_zeroinit")
  options.check_heads(model)
  options.check_rates(model, "dropout")


class _Layer(nn.Module):
  """What every submodule here needs to know."""

  num_heads: int
  mlp_dim: int
  dropout: float
  gelu: str
  norm_eps: float
  dtype: DTypeLike

  def dense(self, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=_INIT, dtype=self.dtype, name=name)

  def options(self) -> dict[str, Any]:
    names = ("num_heads", "mlp_dim", "dropout", "gelu", "norm_eps", "dtype")
    return {name: getattr(self, name) for name in names}


class _SelfAttention(_Layer):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> Float[Array, "batch tokens width"]:
    batch, tokens, width = x.shape
    heads = (batch, tokens, self.num_heads, width // self.num_heads)
    query, key, value = (self.dense(width, name)(x).reshape(heads) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) / heads[-1] ** 0.5
    scores = jnp.where(is_word[:, None, None], scores, jnp.finfo(scores.dtype).min)
    attention = nn.Dropout(self.dropout)(jax.nn.softmax(scores), deterministic)
    return jnp.einsum("bhqk,bkhd->bqhd", attention.astype(value.dtype), value).reshape(batch, tokens, width)


class _AttentionBlock(_Layer):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> Float[Array, "batch tokens width"]:
    y = _SelfAttention(**self.options(), name="attention_layer")(x, is_word, deterministic)
    y = nn.Dropout(self.dropout)(self.dense(x.shape[-1], "dense_layer")(y), deterministic)
    return nn.LayerNorm(self.norm_eps, name="layer_norm")(constrain(x + y, "act_batch")).astype(x.dtype)


class _Mlp(_Layer):
  @nn.compact
  def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens mlp_dim"]:
    return nn.gelu(self.dense(self.mlp_dim, "dense_layer")(x), approximate=self.gelu == "tanh")


class _MlpBlock(_Layer):
  @nn.compact
  def __call__(self, x: Float[Array, "batch tokens width"], deterministic: bool) -> Float[Array, "batch tokens width"]:
    y = self.dense(x.shape[-1], "dense_layer")(_Mlp(**self.options(), name="mlp")(x))
    y = nn.Dropout(self.dropout)(y, deterministic)
    return nn.LayerNorm(self.norm_eps, name="layer_norm")(constrain(x + y, "act_batch")).astype(x.dtype)


class _Block(_Layer):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> Float[Array, "batch tokens width"]:
    x = _AttentionBlock(**self.options(), name="attention_block")(x, is_word, deterministic)
    return _MlpBlock(**self.options(), name="mlp_block")(x, deterministic)


class _Layers(_Layer):
  depth: int
  remat_policy: str | None

  def options(self) -> dict[str, Any]:
    return super().options() | {"depth": self.depth, "remat_policy": self.remat_policy}


class _LayerSequence(_Layers):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> tuple[Float[Array, "batch tokens width"], Intermediates]:
    block, out = _Block, {}
    if self.remat_policy not in (None, "none"):
      policy = getattr(jax.checkpoint_policies, self.remat_policy)
      block = nn.remat(_Block, static_argnums=(3,), policy=policy)  # Argument 3 is `deterministic`; 0 is self.
    shared = _Layer.options(self)
    for i in range(self.depth):
      x = out[f"block{i:02d}"] = block(**shared, name=f"layers_{i}")(x, is_word, deterministic)
    return x, out


class _EncoderBlock(_Layers):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> tuple[Float[Array, "batch tokens width"], Intermediates]:
    return _LayerSequence(**self.options(), name="layer_sequence")(x, is_word, deterministic)


class _Embedder(nn.Module):
  """The sum of the embeddings of tokens, of positions and of the first of two segments."""

  vocab_size: int
  max_len: int
  width: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, text: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens width"]:
    embed = lambda rows, kind: nn.Embed(
      rows, self.width, dtype=self.dtype, embedding_init=_INIT, name=f"embedders_{kind}_ids"
    )
    tokens = embed(self.vocab_size, "token")(text)
    return tokens + embed(self.max_len, "position")(jnp.arange(text.shape[1])) + embed(2, "segment")(jnp.zeros((), int))


class BertEncoder(_Layers):
  """Embeddings, LayerNorm and the blocks (Devlin et al. 2019, section 3; Vaswani et al. 2017, section 3.1)."""

  vocab_size: int
  max_len: int
  width: int

  @nn.compact
  def __call__(
    self, text: Int[Array, "batch tokens"], deterministic: bool
  ) -> tuple[Float[Array, "batch tokens width"], Intermediates]:
    x = _Embedder(self.vocab_size, self.max_len, self.width, self.dtype, name="embedder")(text)
    x = nn.LayerNorm(self.norm_eps, name="layer_norm")(x).astype(self.dtype)
    x = nn.Dropout(self.dropout)(x, deterministic)
    return _EncoderBlock(**self.options(), name="encoder_block")(x, text != 0, deterministic)


class Bert(nn.Module):
  """BERT's encoder, its first token ([CLS]) and a linear head. Made by `Model`, which checks the options.

  Token id 0, the padding of BERT's vocabularies, is seen by no token.

  Attributes:
    num_classes: outputs of the head; None or 0 for no head (the output is the first token's last hidden state).
    width, depth, mlp_dim, num_heads: sizes of the encoder.
    vocab_size: rows of the token embedding.
    max_len: rows of the position embedding, the most tokens that a text can have.
    head_zeroinit: start with a head of zeros.
    dropout: rate in training after the embeddings, in the attention's weights, after each attention and each MLP.
    gelu: "tanh" (the approximation, as in the original release) or "exact", as transformers computes.
    norm_eps: what each LayerNorm adds to the variance.
    remat_policy: what each block keeps for the backward pass, one of `layers.REMAT_POLICIES`; None for everything.
    dtype_mm: of the matrix products and activations, "float32" or "bfloat16".
  """

  num_classes: int | None = None
  width: int = 768
  depth: int = 12
  mlp_dim: int = 3072
  num_heads: int = 12
  vocab_size: int = 30_522
  max_len: int = 512
  head_zeroinit: bool = True
  dropout: float = 0.1
  gelu: str = "tanh"
  norm_eps: float = 1e-12
  remat_policy: str | None = None
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(
    self, text: Int[Array, "batch tokens"], *, train: bool = False
  ) -> tuple[Float[Array, "batch outputs"], Intermediates]:
    """Maps token ids, the first one that of [CLS], padded with 0, to (outputs, named intermediates).

    `train` turns dropout on, which draws from the rng "dropout". The intermediates: "encoder" (its "block00", ...),
    "transformed", "pre_logits" and, with a head, "logits".

    Raises:
      UserError: no token ids, or more tokens than there are positions.
    """
    if text.ndim != 2 or not jnp.issubdtype(text.dtype, jnp.integer):
      raise UserError(f"model: texts must be whole numbers [batch, tokens], got {text.dtype} {list(text.shape)}")
    if text.shape[1] > self.max_len:
      raise UserError(f"model: texts of {text.shape[1]} tokens; BERT has positions for {self.max_len} (max_len)")
    options = {name: getattr(self, name) for name in ("num_heads", "mlp_dim", "dropout", "gelu", "norm_eps", "depth")}
    options |= {name: getattr(self, name) for name in ("remat_policy", "vocab_size", "max_len", "width")}
    out: Intermediates = {}
    x, out["encoder"] = BertEncoder(**options, dtype=self.dtype_mm, name="BertEncoder_0")(text, not train)
    out["transformed"] = x
    x = out["pre_logits"] = x[:, 0]
    if self.num_classes:
      kernel_init = nn.initializers.zeros if self.head_zeroinit else nn.linear.default_kernel_init
      x = out["logits"] = nn.Dense(self.num_classes, kernel_init=kernel_init, name="head")(x)
    return x, out


def load(init_params: trees.PyTree, init_file: str, model_cfg: Any = None, dont_load: Sequence[str] = ()) -> Any:
  """The published weights of `init_file`, fitted to `init_params`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a short name ("bert_base", "mixed_B16B:txt"), or a path or URL of the original release (the folder of
      `bert_model.ckpt`, or that with this name), of a LiT file ("PATH.npz:txt"), or of what `core.models.weights`
      reads of other libraries.
    model_cfg: the model's options. Where they are given, weights of other libraries whose model computes otherwise
      are refused.
    dont_load: regexes over names; `["head/.*"]` where the file has no head of the model's size, as the release has not.

  Raises:
    UserError: an unreadable file, or one of another model or vocabulary.
  """
  init = dict(trees.flatten_with_names(init_params))
  location = catalog.locate("bert", init_file)
  if (prefix := tf_checkpoint.prefix(location)) is not None:
    loaded, options = foreign_bert.from_release(tf_checkpoint.read(prefix), source=init_file), {}
  else:
    loaded, options = weights.read_file_and_options("bert", location)
  if model_cfg is not None:
    weights.check_options(options, Model(**model_cfg), model_cfg, source=init_file)
  embedding = "BertEncoder_0/embedder/embedders_token_ids/embedding"
  text_transformer.check_vocabulary(embedding, loaded, init, dont_load, source=init_file)
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file))
