"""A transformer over the tokens of a text: the text tower of SigLIP and of LiT's own text towers (Zhai et al. 2022)."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from core import trees
from core.errors import UserError, nearest
from core.models import options, vit, weights
from core.models.layers import GELUS, REMAT_POLICIES, Encoder, Intermediates, MAPHead, sincos1d

# What published configs say for the same pooling.
_SYNONYMS = {"mean": "gap", "gmp": "max"}

_CHOICES = {
  "pool_type": ("last", "first", "gap", "map", "max"),
  "posemb": ("learn", "sincos"),
  "gelu": GELUS,
  "remat_policy": (None, *REMAT_POLICIES),
  "dtype_mm": ("float32", "bfloat16"),
}


def Model(num_classes: int | None = None, *, variant: str | None = None, **kw: Any) -> "TextTransformer":
  """The text transformer of `variant` ("B", "So400m": ViT's sizes); options in `kw` (its fields) override those.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  if variant is not None and variant not in vit.VARIANTS:
    raise UserError(f"model: unknown variant {variant!r} of the text transformer{nearest(str(variant), vit.VARIANTS)}")
  given = {**vit.decode_variant(variant), **kw}
  options.known(TextTransformer, given, what="the text transformer")
  given["pool_type"] = _SYNONYMS.get(pool_type := given.get("pool_type", "last"), pool_type)
  model = TextTransformer(num_classes, **given)
  _check(model)
  return model


def _check(model: "TextTransformer") -> None:
  options.check_choices(model, _CHOICES)
  optional = ("num_classes", "mlp_dim", "max_len")
  given = [option for option in optional if getattr(model, option)]
  options.check_positive(model, "width", "depth", "num_heads", "vocab_size", *given)
  options.check_flags(model, "head_bias", "head_zeroinit", "scan")
  options.check_heads(model)
  if model.posemb == "sincos" and model.width % 2:
    raise UserError(f"model: posemb 'sincos' needs an even width, got {model.width}")
  options.check_rates(model, "dropout")


class TextTransformer(nn.Module):
  """Token embedding, a transformer encoder, a pooling and a linear head. Made by `Model`, which checks the options.

  Every token sees every other one, padding among them: published towers were trained so, with texts that are padded
  to one length.

  Attributes:
    num_classes: outputs of the head; None or 0 for no head (the output is the representation).
    width, depth, mlp_dim, num_heads: sizes of the encoder; `mlp_dim` None is four times the width.
    vocab_size: rows of the token embedding: 32,000 for c4_en, 250,000 for mC4, 256,000 for Gemma's tokenizer.
    max_len: the number of tokens of every text; None for whatever the first one has.
    posemb: "learn" or "sincos" (fixed).
    pool_type: the "last" token, the "first", "gap" mean, "max" of each channel, "map" attention pooling.
    head_bias, head_zeroinit: whether the head has a bias; whether it starts with zeros.
    dropout: rate after each attention, each MLP's GELU and each MLP.
    gelu: "tanh" (the approximation) or "exact".
    norm_eps: what each LayerNorm adds to the variance.
    scan, remat_policy: see `Encoder`.
    dtype_mm: of the matrix products and activations, "float32" or "bfloat16".
  """

  num_classes: int | None = None
  width: int = 512
  depth: int = 12
  mlp_dim: int | None = None
  num_heads: int = 8
  vocab_size: int = 32_000
  max_len: int | None = None
  posemb: str = "learn"
  pool_type: str = "last"
  head_bias: bool = True
  head_zeroinit: bool = False
  dropout: float = 0.0
  gelu: str = "tanh"
  norm_eps: float = 1e-6
  scan: bool = False
  remat_policy: str | None = None
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(
    self, text: Int[Array, "batch tokens"], *, train: bool = False
  ) -> tuple[Float[Array, "batch outputs"], Intermediates]:
    """Maps token ids in [0, vocab_size) to (outputs, named intermediates).

    `train` turns dropout on, which draws from the rng "dropout". The intermediates: "embedded", "with_posemb",
    "encoder" (see `vit.ViT`), "transformed", "pre_logits" and, with a head, "logits".

    Raises:
      UserError: no token ids, or texts of another length than the position embedding.
    """
    self._check_text(text)
    out: Intermediates = {}
    x = out["embedded"] = nn.Embed(self.vocab_size, self.width, dtype=self.dtype_mm)(text)
    x = out["with_posemb"] = x + self._position_embedding(text.shape[1]).astype(x.dtype)
    encoder = Encoder(
      self.depth,
      self.num_heads,
      self.mlp_dim,
      self.dropout,
      scan=self.scan,
      remat_policy=self.remat_policy,
      dtype=self.dtype_mm,
      gelu=self.gelu,
      norm_eps=self.norm_eps,
    )
    x, out["encoder"] = encoder(x, not train)
    out["transformed"] = x
    x = out["pre_logits"] = self._pool(x)
    if self.num_classes:
      kernel_init = nn.initializers.zeros if self.head_zeroinit else nn.linear.default_kernel_init
      head = nn.Dense(self.num_classes, use_bias=self.head_bias, kernel_init=kernel_init, name="head")
      x = out["logits"] = head(x)
    return x, out

  def _check_text(self, text: Any) -> None:
    if text.ndim != 2 or not jnp.issubdtype(text.dtype, jnp.integer):
      raise UserError(f"model: texts must be whole numbers [batch, tokens], got {text.dtype} {list(text.shape)}")
    if self.max_len not in (None, text.shape[1]):
      raise UserError(f"model: texts of {text.shape[1]} tokens, and the model is for {self.max_len} (max_len)")

  def _position_embedding(self, length: int) -> Float[Array, "1 tokens width"]:
    if self.posemb == "sincos":
      return jnp.asarray(sincos1d(length, self.width))
    if self.has_variable("params", "pos_embedding"):
      stored = self.get_variable("params", "pos_embedding").shape[1]
      if stored != length:
        raise UserError(
          f"model: texts of {length} tokens, and pos_embedding was made for {stored}; pad them to {stored}"
        )
    return self.param("pos_embedding", nn.initializers.normal(1 / math.sqrt(self.width)), (1, length, self.width))

  def _pool(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
    match self.pool_type:
      case "last":
        return x[:, -1]
      case "first":
        return x[:, 0]
      case "gap":
        return x.mean(axis=1)
      case "max":
        return x.max(axis=1)
      case _:
        return MAPHead(self.num_heads, self.mlp_dim, self.dtype_mm, self.gelu, self.norm_eps)(x)


def load(init_params: trees.PyTree, init_file: str, model_cfg: Any = None, dont_load: Sequence[str] = ()) -> Any:
  """The published weights of `init_file` ("PATH.npz:txt" of a file of two towers), fitted to `init_params`.

  Blocks are stacked or unstacked to match `scan`. What a regex of `dont_load` matches whole keeps its value of
  `init_params`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a short name ("SigLIP B/16 224"), a path or a URL: see `core.models.weights.read_file`.
    model_cfg: the model's options. Where they are given, weights of other libraries whose model computes otherwise
      (another kind of GELU, another number of heads) are refused.
    dont_load: regexes over names, `["head/.*"]` for another size of the embedding.

  Raises:
    UserError: an unreadable file, or one of another model, vocabulary or length of texts.
  """
  init = dict(trees.flatten_with_names(init_params))
  loaded, options = weights.read_file_and_options("text_transformer", init_file)
  if model_cfg is not None:
    weights.check_options(options, Model(**model_cfg), model_cfg, source=init_file)
  loaded = weights.split_heads(weights.match_scan(loaded, init), init)
  check_vocabulary("Embed_0/embedding", loaded, init, dont_load, source=init_file)
  _check_length(loaded, init, dont_load, source=init_file)
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file))


def check_vocabulary(
  name: str, loaded: dict[str, Any], init: dict[str, Any], dont_load: Sequence[str], *, source: str
) -> None:
  """Refuses weights for another number of tokens than the model's; `name` is the embedding's.

  Raises:
    UserError: gives both numbers; `source` begins the line.
  """
  theirs, ours = (len(named[name]) if name in named else None for named in (loaded, init))
  if None not in (theirs, ours) and theirs != ours and trees.first_match(name, dont_load) is None:
    raise UserError(
      f"{source}: its vocabulary has {theirs:,} tokens, and that of the model {ours:,}: set vocab_size={theirs} and "
      "tokenize with the vocabulary of the weights"
    )


def _check_length(loaded: dict[str, Any], init: dict[str, Any], dont_load: Sequence[str], *, source: str) -> None:
  name = "pos_embedding"
  # Learned positions of words mean their order; between two of them lies none that another length could take.
  if name in loaded and name in init and trees.first_match(name, dont_load) is None:
    theirs, ours = loaded[name].shape[1:2], init[name].shape[1:2]
    if theirs and theirs != ours:
      raise UserError(
        f"{source}: for texts of {theirs[0]} tokens, and those here have {ours[0]}: pad or cut texts to {theirs[0]} "
        "(max_len of the tokenizer)"
      )
