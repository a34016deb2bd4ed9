"""BERT (Devlin et al. 2019) as a text tower: its encoder, the first token, a linear head; post-LN, as published.

Parameters carry the names of the published LiT files (Zhai et al. 2022).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from core import trees
from core.checkpoint import catalog, tf_checkpoint
from core.errors import UserError
from core.models import text_transformer, weights
from core.models.foreign import bert as foreign_bert
from core.models.layers import Intermediates
from core.recipe.models.bert import Bert as Options
from core.recipe.models.options import NumClasses
from core.recipe.parse import parse
from core.sharding import constrain

_INIT = nn.initializers.truncated_normal(0.02)


def Model(
  num_classes: int | None = None,
  *,
  config: str | None = None,
  variant: str | None = None,
  name: str | None = None,
  **kw: Any,
) -> "Bert":
  """Returns the BERT of `config` or `variant`, "base" or "large"; `kw` are `Options` that override it.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  options = parse(Options, {"config": config, "variant": variant, **kw}, "model")
  return make(parse(NumClasses, num_classes, "num_classes"), options, name=name)


def make(num_classes: int | None, options: Options, *, name: str | None = None) -> "Bert":
  """Returns the BERT of these options, with a head of `num_classes` outputs; None or 0 for no head."""
  return Bert(num_classes, options, name=name)


class _Layer(nn.Module):
  """What every submodule here needs to know."""

  options: Options

  def dense(self, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=_INIT, dtype=self.options.dtype_mm, name=name)

  def drop(self, x: Float[Array, "..."], deterministic: bool) -> Float[Array, "..."]:
    return nn.Dropout(self.options.dropout)(x, deterministic)

  def norm(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
    return nn.LayerNorm(self.options.norm_eps, name="layer_norm")(x)


class _SelfAttention(_Layer):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> Float[Array, "batch tokens width"]:
    batch, tokens, width = x.shape
    heads = (batch, tokens, self.options.num_heads, width // self.options.num_heads)
    query, key, value = (self.dense(width, name)(x).reshape(heads) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) / heads[-1] ** 0.5
    scores = jnp.where(is_word[:, None, None], scores, jnp.finfo(scores.dtype).min)
    attention = self.drop(jax.nn.softmax(scores), deterministic)
    return jnp.einsum("bhqk,bkhd->bqhd", attention.astype(value.dtype), value).reshape(batch, tokens, width)


class _AttentionBlock(_Layer):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> Float[Array, "batch tokens width"]:
    y = _SelfAttention(self.options, name="attention_layer")(x, is_word, deterministic)
    y = self.drop(self.dense(x.shape[-1], "dense_layer")(y), deterministic)
    return self.norm(constrain(x + y, "act_batch")).astype(x.dtype)


class _Mlp(_Layer):
  @nn.compact
  def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens mlp_dim"]:
    return nn.gelu(self.dense(self.options.mlp_dim, "dense_layer")(x), approximate=self.options.gelu == "tanh")


class _MlpBlock(_Layer):
  @nn.compact
  def __call__(self, x: Float[Array, "batch tokens width"], deterministic: bool) -> Float[Array, "batch tokens width"]:
    y = self.dense(x.shape[-1], "dense_layer")(_Mlp(self.options, name="mlp")(x))
    y = self.drop(y, deterministic)
    return self.norm(constrain(x + y, "act_batch")).astype(x.dtype)


class _Block(_Layer):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> Float[Array, "batch tokens width"]:
    x = _AttentionBlock(self.options, name="attention_block")(x, is_word, deterministic)
    return _MlpBlock(self.options, name="mlp_block")(x, deterministic)


@functools.cache  # See core.models.layers: not to be made by two threads at once.
def _rematerialized(policy: str) -> type[nn.Module]:
  if policy == "none":
    return _Block
  # Argument 3 is `deterministic`; 0 is self.
  return nn.remat(_Block, static_argnums=(3,), policy=getattr(jax.checkpoint_policies, policy))


class _LayerSequence(_Layer):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> tuple[Float[Array, "batch tokens width"], Intermediates]:
    block, out = _rematerialized(self.options.remat_policy or "none"), {}
    for i in range(self.options.depth):
      x = out[f"block{i:02d}"] = block(self.options, name=f"layers_{i}")(x, is_word, deterministic)
    return x, out


class _EncoderBlock(_Layer):
  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens width"], is_word: Bool[Array, "batch tokens"], deterministic: bool
  ) -> tuple[Float[Array, "batch tokens width"], Intermediates]:
    return _LayerSequence(self.options, name="layer_sequence")(x, is_word, deterministic)


class _Embedder(_Layer):
  """The sum of the embeddings of tokens, of positions and of the first of two segments."""

  @nn.compact
  def __call__(self, text: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens width"]:
    tokens = self._embedding(self.options.vocab_size, "token")(text)
    positions = self._embedding(self.options.max_len, "position")(jnp.arange(text.shape[1]))
    return tokens + positions + self._embedding(2, "segment")(jnp.zeros((), int))

  def _embedding(self, rows: int, kind: str) -> nn.Embed:
    name = f"embedders_{kind}_ids"
    return nn.Embed(rows, self.options.width, dtype=self.options.dtype_mm, embedding_init=_INIT, name=name)


class BertEncoder(_Layer):
  """Embeddings, LayerNorm and the blocks (Devlin et al. 2019, section 3; Vaswani et al. 2017, section 3.1)."""

  @nn.compact
  def __call__(
    self, text: Int[Array, "batch tokens"], deterministic: bool
  ) -> tuple[Float[Array, "batch tokens width"], Intermediates]:
    x = _Embedder(self.options, name="embedder")(text)
    x = self.norm(x).astype(self.options.dtype_mm)
    x = self.drop(x, deterministic)
    return _EncoderBlock(self.options, name="encoder_block")(x, text != 0, deterministic)


class Bert(nn.Module):
  """BERT's encoder, its first token ([CLS]) and a linear head. Made by `Model` or `make`.

  Token id 0, the padding of BERT's vocabularies, is seen by no token.

  Attributes:
    num_classes: outputs of the head; None or 0 for no head (the output is the first token's last hidden state).
    options: of the model.
  """

  num_classes: int | None = None
  options: Options = Options()

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
      raise UserError(f"texts must be whole numbers [batch, tokens], got {text.dtype} {list(text.shape)}")
    if text.shape[1] > self.options.max_len:
      raise UserError(f"texts of {text.shape[1]} tokens; BERT has positions for {self.options.max_len} (max_len)")
    out: Intermediates = {}
    x, out["encoder"] = BertEncoder(self.options, name="BertEncoder_0")(text, not train)
    out["transformed"] = x
    x = out["pre_logits"] = x[:, 0]
    if self.num_classes:
      kernel_init = nn.initializers.zeros if self.options.head_zeroinit else nn.linear.default_kernel_init
      x = out["logits"] = nn.Dense(self.num_classes, kernel_init=kernel_init, name="head")(x)
    return x, out


def load(
  init_params: trees.PyTree, init_file: str, options: Options | None = None, dont_load: Sequence[str] = ()
) -> Any:
  """Returns the published weights of `init_file`, fitted to `init_params`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a short name ("bert_base", "mixed_B16B:txt"), or a path or URL of the original release (the folder of
      `bert_model.ckpt`, or that with this name), of a LiT file ("PATH.npz:txt"), or of what `core.models.weights`
      reads of other libraries.
    options: of the model. Where they are given, weights of other libraries whose model computes otherwise
      are refused.
    dont_load: regexes over names; `["head/.*"]` where the file has no head of the model's size, as the release has not.

  Raises:
    UserError: an unreadable file, or one of another model or vocabulary.
  """
  init, dont_load = dict(trees.flatten_with_names(init_params)), weights.patterns(dont_load)
  location = catalog.locate("bert", init_file)
  if (prefix := tf_checkpoint.prefix(location)) is not None:
    loaded, of_file = foreign_bert.from_release(tf_checkpoint.read(prefix), source=init_file), {}
  else:
    loaded, of_file = weights.read_file_and_options("bert", location)
  weights.check_options(of_file, options, source=init_file)
  embedding = "BertEncoder_0/embedder/embedders_token_ids/embedding"
  text_transformer.check_vocabulary(embedding, loaded, init, dont_load, source=init_file)
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file))
