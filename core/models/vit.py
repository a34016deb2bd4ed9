"""The Vision Transformer, with the variants and options of the published models (Dosovitskiy et al. 2021)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from core import trees
from core.errors import UserError
from core.models import options, patch_resize, vit_layouts, weights
from core.models.foreign.vit import structure
from core.models.layers import GELUS, REMAT_POLICIES, Encoder, Intermediates, MAPHead, sincos2d
from core.sharding import constrain

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

_CHOICES = {
  "posemb": ("learn", "sincos2d"),
  "pool_type": ("gap", "map", "tok", "0", "none"),
  "gelu": GELUS,
  "remat_policy": (None, *REMAT_POLICIES),
  "dtype_mm": ("float32", "bfloat16"),
}


def Model(num_classes: int | None = None, *, variant: str | None = None, **kw: Any) -> "ViT":
  """The ViT of `variant` ("S/16", "So400m/14", "B"); options in `kw` (the fields of `ViT`) override the variant's.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  return make(ViT, num_classes, variant=variant, **kw)


def make(module: type["ViT"], num_classes: int | None = None, *, variant: str | None = None, **kw: Any) -> "ViT":
  """As `Model`, of a module that is a kind of ViT."""
  given = {**decode_variant(variant), **kw}
  options.known(module, given, what=module.__name__)
  patch_size = options.pair(given.pop("patch_size", module.patch_size))
  model = module(num_classes, patch_size=patch_size, **given)
  _check(model)
  return model


def decode_variant(variant: str | None) -> dict[str, Any]:
  """The options that `"S/16"` stands for; without `/patch` the patch size keeps its default; `{}` for None."""
  return options.sized_variant(variant, VARIANTS, ("width", "depth", "mlp_dim", "num_heads"), what="ViT")


def _check(model: "ViT") -> None:
  options.check_choices(model, _CHOICES)
  options.check_patch_size(model)
  options.check_positive(model, "width", "depth", "num_heads", *(["mlp_dim"] if model.mlp_dim is not None else []))
  if not isinstance(model.rep_size, int) or model.rep_size < 0:
    raise UserError(f"model: rep_size must be True, False or a number of units, got {model.rep_size!r}")
  if not isinstance(model.registers, int) or isinstance(model.registers, bool) or model.registers < 0:
    raise UserError(f"model: registers must be a number of tokens, got {model.registers!r}")
  if not isinstance(model.norm_eps, float) or not model.norm_eps > 0:
    raise UserError(f"model: norm_eps must be a small positive number like 1e-6, got {model.norm_eps!r}")
  options.check_flags(model, "qkv_bias", "swiglu", "fc_norm")
  if model.fc_norm and model.pool_type != "gap":
    raise UserError(f"model: fc_norm goes with pool_type 'gap', got {model.pool_type!r}")
  options.check_heads(model)
  if model.posemb == "sincos2d" and (model.width % 4 or model.width < 8):
    raise UserError(f"model: posemb 'sincos2d' needs a width divisible by 4 and at least 8, got {model.width}")
  options.check_rates(model, "dropout", "stoch_depth")


class ViT(nn.Module):
  """Patches, a transformer encoder, a pooling and a linear head. Made by `Model`, which checks the options.

  Attributes:
    num_classes: outputs of the head; None or 0 for no head (the output is the representation).
    patch_size: pixels (height, width).
    width, depth, mlp_dim, num_heads: sizes of the encoder; `mlp_dim` None is four times the width.
    posemb: "learn" or "sincos2d" (fixed).
    rep_size: tanh(Dense) of that size before the head; True for `width`, False for none.
    dropout: rate after the position embedding, each attention, each MLP's GELU and each MLP.
    stoch_depth: rate at which an example skips the branches of the last block, growing linearly from 0 at the first.
    pool_type: "gap" mean of the tokens, "map" attention pooling, "tok" a class token, "0" the first token, "none".
    head_zeroinit: start with a head of zeros.
    gelu: "tanh" (the approximation) or "exact", which most models of PyTorch's world want.
    swiglu: MLPs gated by a SiLU instead of GELU, as in the largest DINOv2.
    qkv_bias: whether query, key and value have a bias; those of a MAP head always do.
    registers: learned tokens beside the patches that no pooling reads (Darcet et al. 2024).
    fc_norm: the final LayerNorm after the mean of the tokens instead of before it.
    norm_eps: what each LayerNorm adds to the variance.
    scan, remat_policy: see `Encoder`.
    dtype_mm: of the matrix products and activations, "float32" or "bfloat16"; parameters, LayerNorm, softmax and
      logits are float32 in both.
  """

  num_classes: int | None = None
  patch_size: tuple[int, int] = (16, 16)
  width: int = 768
  depth: int = 12
  mlp_dim: int | None = None
  num_heads: int = 12
  posemb: str = "learn"
  rep_size: int | bool = False
  dropout: float = 0.0
  stoch_depth: float = 0.0
  pool_type: str = "gap"
  head_zeroinit: bool = True
  gelu: str = "tanh"
  swiglu: bool = False
  qkv_bias: bool = True
  registers: int = 0
  fc_norm: bool = False
  norm_eps: float = 1e-6
  scan: bool = False
  remat_policy: str | None = None
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width channels"], *, train: bool = False
  ) -> tuple[Float[Array, "batch ... outputs"], Intermediates]:
    """Maps images, values in [-1, 1], to (logits or representation, named intermediates).

    `train` turns dropout and stochastic depth on, which draw from the rng "dropout". The intermediates: "stem",
    "with_posemb", "encoder" (its "block00", ... each with "sa", "+sa", "mlp", "+mlp", and "pre_ln"), "encoded",
    "head_input", "pre_logits", "logits", and the last two for every patch, as "pre_logits_2d" and "logits_2d" [batch,
    rows, columns, outputs].

    Raises:
      UserError: an image whose size the patches do not divide, or other than that of the position embedding.
    """
    out: Intermediates = {}
    x = out["stem"] = self._embed_patches(image)
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows * columns, self.width)
    x = out["with_posemb"] = x + self._position_embedding(rows, columns).astype(x.dtype)
    first = self._first_tokens()
    x = jnp.concatenate([*(jnp.tile(tokens, (batch, 1, 1)).astype(x.dtype) for tokens in first), x], axis=1)
    x = nn.Dropout(self.dropout)(x, not train)

    encoder = Encoder(
      self.depth,
      self.num_heads,
      self.mlp_dim,
      self.dropout,
      self.stoch_depth,
      scan=self.scan,
      remat_policy=self.remat_policy,
      dtype=self.dtype_mm,
      qkv_bias=self.qkv_bias,
      gelu=self.gelu,
      swiglu=self.swiglu,
      norm_eps=self.norm_eps,
      final_norm=not self.fc_norm,
      name="Transformer",
    )
    x, out["encoder"] = encoder(x, not train)
    out["encoded"] = x

    patches = x[:, -rows * columns :]
    x_2d = patches.reshape(batch, rows, columns, self.width)
    x = self._pool(x[:, 0] if self.pool_type == "tok" else patches)
    if self.fc_norm:
      norm = nn.LayerNorm(self.norm_eps, name="fc_norm")
      x, x_2d = norm(x), norm(x_2d)
    out["head_input"] = x
    if self.rep_size:
      size = self.width if self.rep_size is True else self.rep_size
      pre_logits = nn.Dense(size, dtype=self.dtype_mm, name="pre_logits")
      x, x_2d = nn.tanh(pre_logits(x)), nn.tanh(pre_logits(x_2d))
    out["pre_logits"], out["pre_logits_2d"] = x, x_2d
    if self.num_classes:
      kernel_init = nn.initializers.zeros if self.head_zeroinit else nn.linear.default_kernel_init
      head = nn.Dense(self.num_classes, kernel_init=kernel_init, name="head")
      x, x_2d = out["logits"], out["logits_2d"] = constrain(head(x), "act_batch", "act_classes"), head(x_2d)
    return x, out

  def _embed_patches(
    self, image: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch rows columns width"]:
    self._check_image(image.shape)
    conv = nn.Conv(
      self.width, self.patch_size, strides=self.patch_size, padding="VALID", name="embedding", dtype=self.dtype_mm
    )
    return conv(jnp.asarray(image, self.dtype_mm))

  def _check_image(self, shape: tuple[int, ...]) -> None:
    size, patch = shape[1:3], self.patch_size
    if len(shape) != 4 or size[0] % patch[0] or size[1] % patch[1]:
      raise UserError(
        f"model: images must be [batch, height, width, channels] with a size divisible by the patch size "
        f"{patch[0]}x{patch[1]}, got {list(shape)}"
      )

  def _position_embedding(self, rows: int, columns: int) -> Float[Array, "1 tokens width"]:
    if self.posemb == "sincos2d":
      return jnp.asarray(sincos2d(rows, columns, self.width))
    if self.has_variable("params", "pos_embedding"):
      stored = self.get_variable("params", "pos_embedding").shape[1]
      if stored != rows * columns:
        raise UserError(
          f"model: the image has {rows}x{columns} patches, but pos_embedding was made for {stored}; "
          "resize the images, or load the weights into a model initialized at this size"
        )
    init = nn.initializers.normal(1 / math.sqrt(self.width))
    return self.param("pos_embedding", init, (1, rows * columns, self.width))

  def _first_tokens(self) -> list[Float[Array, "1 tokens width"]]:
    """The learned tokens that stand before the patches: the class token, then the registers."""
    tokens = []
    if self.pool_type == "tok":
      tokens.append(self.param("cls", nn.initializers.zeros, (1, 1, self.width)))
    if self.registers:
      # Not zeros: equal registers would get equal gradients, and stay one register for ever.
      tokens.append(self.param("registers", nn.initializers.normal(0.02), (1, self.registers, self.width)))
    return tokens

  def _pool(self, x: Float[Array, "batch ... width"]) -> Float[Array, "batch ... width"]:
    """`x` is the class token under `pool_type="tok"`, else the patches."""
    match self.pool_type:
      case "gap":
        return x.mean(axis=1)
      case "map":
        return MAPHead(self.num_heads, self.mlp_dim, self.dtype_mm, self.gelu, self.norm_eps)(x)
      case "0":
        return x[:, 0]
      case _:
        return x


def load(
  init_params: trees.PyTree,
  init_file: str,
  model_cfg: Any = None,
  dont_load: Sequence[str] = (),
  *,
  resize_positions: Callable[[Any, Any], Any] = weights.resample_posemb,
  resize_patches: Callable[[Any, Any], Any] = patch_resize.resample_patch_embedding,
) -> Any:
  """The published weights of `init_file` ("PATH.npz[:subtree]"), fitted to `init_params`.

  Older files are brought up to date (see `vit_layouts`), blocks are stacked or unstacked to match `scan`, and position
  and patch embeddings of another size are resized. What a regex of `dont_load` matches whole keeps its value of
  `init_params`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a short name, a path or a URL: see `core.models.weights.read_file`.
    model_cfg: the model's options. Where they are given, weights of other libraries whose model computes otherwise
      (another kind of GELU, another number of heads) are refused.
    dont_load: regexes over names, `["head/.*"]` for a new task.
    resize_positions: `fn(positions, those of init_params)`, for a model that wants another way of resizing.
    resize_patches: `fn(kernel, (height, width))`, likewise.

  Raises:
    UserError: an unreadable file, or one of another model (it names the first parameters that differ).
  """
  init = dict(trees.flatten_with_names(init_params))
  loaded, of_file = weights.read_file_and_options("vit", init_file)
  if model_cfg is not None:
    weights.check_options(of_file, Model(**model_cfg), model_cfg, source=init_file)
  loaded = vit_layouts.current(loaded, init)
  loaded = weights.split_heads(weights.match_scan(loaded, init), init)

  def wanted(name: str) -> bool:
    alike = name in loaded and name in init and loaded[name].ndim == init[name].ndim
    return alike and trees.first_match(name, dont_load) is None

  if wanted("pos_embedding"):
    loaded["pos_embedding"] = resize_positions(loaded["pos_embedding"], init["pos_embedding"])
  if wanted("embedding/kernel"):
    size = init["embedding/kernel"].shape[:2]
    loaded["embedding/kernel"] = resize_patches(loaded["embedding/kernel"], size)
  hint = _options_that_differ(loaded, init)
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file, hint=hint))


def _options_that_differ(loaded: dict[str, Any], init: dict[str, Any]) -> str:
  """`"; its model has registers=4, ours 0"`: the options of `Model` behind parameters that differ, or nothing."""
  theirs, ours = structure(loaded), structure(init)
  differ = [option for option in ours if option != "patch_size" and theirs.get(option, ours[option]) != ours[option]]
  return "".join(f"; its model has {option}={theirs[option]!r}, ours {ours[option]!r}" for option in differ)
