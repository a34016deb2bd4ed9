"""A transformer over the tokens of a text: the text tower of SigLIP and of LiT's own text towers (Zhai et al. 2022)."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from core import trees
from core.errors import UserError
from core.models import weights
from core.models.layers import Encoder, Intermediates, MAPHead, sincos1d
from core.recipe.models.options import NumClasses
from core.recipe.models.text_transformer import TextTransformer as Options
from core.recipe.parse import parse


def Model(
  num_classes: int | None = None, *, variant: str | None = None, name: str | None = None, **kw: Any
) -> "TextTransformer":
  """Returns the text transformer of `variant` ("B", "So400m": ViT's sizes); `kw` are `Options` that override it.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  options = parse(Options, {"variant": variant, **kw}, "model")
  return make(parse(NumClasses, num_classes, "num_classes"), options, name=name)


def make(num_classes: int | None, options: Options, *, name: str | None = None) -> "TextTransformer":
  """Returns the text transformer of these options, with a head of `num_classes` outputs; None or 0 for no head."""
  return TextTransformer(num_classes, options, name=name)


class TextTransformer(nn.Module):
  """Token embedding, a transformer encoder, a pooling and a linear head. Made by `Model` or `make`.

  Every token sees every other one, padding among them: published towers were trained so, with texts that are padded
  to one length.

  Attributes:
    num_classes: outputs of the head; None or 0 for no head (the output is the representation).
    options: of the model.
  """

  num_classes: int | None = None
  options: Options = Options()

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
    options = self.options
    self._check_text(text)
    out: Intermediates = {}
    x = out["embedded"] = nn.Embed(options.vocab_size, options.width, dtype=options.dtype_mm)(text)
    x = out["with_posemb"] = x + self._position_embedding(text.shape[1]).astype(x.dtype)
    encoder = Encoder(
      options.depth,
      options.num_heads,
      options.mlp_dim,
      options.dropout,
      scan=options.scan,
      remat_policy=options.remat_policy,
      dtype=options.dtype_mm,
      gelu=options.gelu,
      norm_eps=options.norm_eps,
    )
    x, out["encoder"] = encoder(x, not train)
    out["transformed"] = x
    x = out["pre_logits"] = self._pool(x)
    if self.num_classes:
      kernel_init = nn.initializers.zeros if options.head_zeroinit else nn.linear.default_kernel_init
      head = nn.Dense(self.num_classes, use_bias=options.head_bias, kernel_init=kernel_init, name="head")
      x = out["logits"] = head(x)
    return x, out

  def _check_text(self, text: Any) -> None:
    if text.ndim != 2 or not jnp.issubdtype(text.dtype, jnp.integer):
      raise UserError(f"texts must be whole numbers [batch, tokens], got {text.dtype} {list(text.shape)}")
    if self.options.max_len not in (None, text.shape[1]):
      raise UserError(f"texts of {text.shape[1]} tokens, and the model is for {self.options.max_len} (max_len)")

  def _position_embedding(self, length: int) -> Float[Array, "1 tokens width"]:
    options = self.options
    if options.posemb == "sincos":
      return jnp.asarray(sincos1d(length, options.width))
    if self.has_variable("params", "pos_embedding"):
      stored = self.get_variable("params", "pos_embedding").shape[1]
      if stored != length:
        raise UserError(f"texts of {length} tokens, and pos_embedding was made for {stored}; pad them to {stored}")
    return self.param("pos_embedding", nn.initializers.normal(1 / math.sqrt(options.width)), (1, length, options.width))

  def _pool(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
    options = self.options
    match options.pool_type:
      case "last":
        return x[:, -1]
      case "first":
        return x[:, 0]
      case "gap":
        return x.mean(axis=1)
      case "max":
        return x.max(axis=1)
      case _:
        return MAPHead(options.num_heads, options.mlp_dim, options.dtype_mm, options.gelu, options.norm_eps)(x)


def load(
  init_params: trees.PyTree, init_file: str, options: Options | None = None, dont_load: Sequence[str] = ()
) -> Any:
  """Returns the published weights of `init_file` ("PATH.npz:txt" of a file of two towers), fitted to `init_params`.

  Blocks are stacked or unstacked to match `scan`. What a regex of `dont_load` matches whole keeps its value of
  `init_params`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a short name ("SigLIP B/16 224"), a path or a URL: see `core.models.weights.read_file`.
    options: of the model. Where they are given, weights of other libraries whose model computes otherwise
      (another kind of GELU, another number of heads) are refused.
    dont_load: regexes over names, `["head/.*"]` for another size of the embedding.

  Raises:
    UserError: an unreadable file, or one of another model, vocabulary or length of texts.
  """
  init, dont_load = dict(trees.flatten_with_names(init_params)), weights.patterns(dont_load)
  loaded, of_file = weights.read_file_and_options("text_transformer", init_file)
  weights.check_options(of_file, options, source=init_file)
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
