"""The Vision Transformer, with the variants and options of the published models (Dosovitskiy et al. 2021)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from core import trees
from core.errors import UserError, naming
from core.models import grids, patch_resize, vit_layouts, weights
from core.models.foreign.vit import structure
from core.models.layers import Encoder, Intermediates, MAPHead, sincos2d
from core.recipe.models.options import ModelOptions, NumClasses
from core.recipe.models.vit import ViT as Options
from core.recipe.parse import parse
from core.sharding import constrain


def Model(num_classes: int | None = None, *, variant: str | None = None, name: str | None = None, **kw: Any) -> "ViT":
  """Returns the ViT of `variant` ("S/16", "So400m/14", "B"); `kw` are `Options` that override it.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  options = parse(Options, {"variant": variant, **kw}, "model")
  return make(parse(NumClasses, num_classes, "num_classes"), options, name=name)


def make(num_classes: int | None, options: Options, *, name: str | None = None) -> "ViT":
  """Returns the ViT of these options, with a head of `num_classes` outputs; None or 0 for no head."""
  return ViT(num_classes, options, name=name)


class ViT(nn.Module):
  """Patches, a transformer encoder, a pooling and a linear head. Made by `Model` or `make`.

  Attributes:
    num_classes: outputs of the head; None or 0 for no head (the output is the representation).
    options: of the model.
  """

  num_classes: int | None = None
  options: Options = Options()

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
    options = self.options
    out: Intermediates = {}
    x = out["stem"] = self._embed_patches(image)
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows * columns, options.width)
    x = out["with_posemb"] = x + self._position_embedding(rows, columns).astype(x.dtype)
    first = self._first_tokens()
    x = jnp.concatenate([*(jnp.tile(tokens, (batch, 1, 1)).astype(x.dtype) for tokens in first), x], axis=1)
    x = nn.Dropout(options.dropout)(x, not train)

    encoder = Encoder(
      options.depth,
      options.num_heads,
      options.mlp_dim,
      options.dropout,
      options.stoch_depth,
      scan=options.scan,
      remat_policy=options.remat_policy,
      dtype=options.dtype_mm,
      qkv_bias=options.qkv_bias,
      gelu=options.gelu,
      swiglu=options.swiglu,
      norm_eps=options.norm_eps,
      final_norm=not options.fc_norm,
      name="Transformer",
    )
    x, out["encoder"] = encoder(x, not train)
    out["encoded"] = x

    patches = x[:, -rows * columns :]
    x_2d = patches.reshape(batch, rows, columns, options.width)
    x = self._pool(x[:, 0] if options.pool_type == "tok" else patches)
    if options.fc_norm:
      norm = nn.LayerNorm(options.norm_eps, name="fc_norm")
      x, x_2d = norm(x), norm(x_2d)
    out["head_input"] = x
    if options.rep_size:
      size = options.width if options.rep_size is True else options.rep_size
      pre_logits = nn.Dense(size, dtype=options.dtype_mm, name="pre_logits")
      x, x_2d = nn.tanh(pre_logits(x)), nn.tanh(pre_logits(x_2d))
    out["pre_logits"], out["pre_logits_2d"] = x, x_2d
    if self.num_classes:
      kernel_init = nn.initializers.zeros if options.head_zeroinit else nn.linear.default_kernel_init
      head = nn.Dense(self.num_classes, kernel_init=kernel_init, name="head")
      x, x_2d = out["logits"], out["logits_2d"] = constrain(head(x), "act_batch", "act_classes"), head(x_2d)
    return x, out

  def _embed_patches(
    self, image: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch rows columns width"]:
    options = self.options
    self._check_image(image.shape)
    conv = nn.Conv(
      options.width,
      options.patch_size,
      strides=options.patch_size,
      padding="VALID",
      name="embedding",
      dtype=options.dtype_mm,
    )
    return conv(jnp.asarray(image, options.dtype_mm))

  def _check_image(self, shape: tuple[int, ...]) -> None:
    size, patch = shape[1:3], self.options.patch_size
    if len(shape) != 4 or size[0] % patch[0] or size[1] % patch[1]:
      raise UserError(
        f"model: images must be [batch, height, width, channels] with a size divisible by the patch size "
        f"{patch[0]}x{patch[1]}, got {list(shape)}"
      )

  def _position_embedding(self, rows: int, columns: int) -> Float[Array, "1 tokens width"]:
    options = self.options
    if options.posemb == "sincos2d":
      return jnp.asarray(sincos2d(rows, columns, options.width))
    if self.is_initializing():
      grids.note(rows, columns)
    if self.has_variable("params", "pos_embedding"):
      stored = self.get_variable("params", "pos_embedding").shape[1]
      if stored != rows * columns:
        raise UserError(
          f"model: the image has {rows}x{columns} patches, but pos_embedding was made for {stored}; "
          "resize the images, or load the weights into a model initialized at this size"
        )
    init = nn.initializers.normal(1 / math.sqrt(options.width))
    return self.param("pos_embedding", init, (1, rows * columns, options.width))

  def _first_tokens(self) -> list[Float[Array, "1 tokens width"]]:
    """Returns the learned tokens that stand before the patches: the class token, then the registers."""
    options = self.options
    tokens = []
    if options.pool_type == "tok":
      tokens.append(self.param("cls", nn.initializers.zeros, (1, 1, options.width)))
    if options.registers:
      # Not zeros: equal registers would get equal gradients, and stay one register for ever.
      tokens.append(self.param("registers", nn.initializers.normal(0.02), (1, options.registers, options.width)))
    return tokens

  def _pool(self, x: Float[Array, "batch ... width"]) -> Float[Array, "batch ... width"]:
    """Pools `x`, which is the class token under `pool_type="tok"`, else the patches."""
    options = self.options
    match options.pool_type:
      case "gap":
        return x.mean(axis=1)
      case "map":
        return MAPHead(options.num_heads, options.mlp_dim, options.dtype_mm, options.gelu, options.norm_eps)(x)
      case "0":
        return x[:, 0]
      case _:
        return x


def load(
  init_params: trees.PyTree,
  init_file: str,
  options: ModelOptions | None = None,
  dont_load: Sequence[str] = (),
  *,
  grid: grids.Grid | None = None,
  resize_patches: Callable[[Any, Any], Any] = patch_resize.resample_patch_embedding,
) -> Any:
  """Returns the published weights of `init_file` ("PATH.npz[:subtree]"), fitted to `init_params`.

  Older files are brought up to date (see `vit_layouts`), blocks are stacked or unstacked to match `scan`, and position
  and patch embeddings of another size are resized. What a regex of `dont_load` matches whole keeps its value of
  `init_params`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a short name, a path or a URL: see `core.models.weights.read_file`.
    options: of the model. Where they are given, weights of other libraries whose model computes otherwise
      (another kind of GELU, another number of heads) are refused.
    dont_load: regexes over names, `["head/.*"]` for a new task.
    grid: rows and columns of patches in the model's images; by default those for which it was made in this process.
    resize_patches: `fn(kernel, (height, width))`, for a model that wants another way of resizing.

  Raises:
    UserError: an unreadable file, one of another model (it names the first parameters that differ), one whose grid of
      positions may be this or that, or a regex of `dont_load` that matches nothing.
  """
  init, dont_load = dict(trees.flatten_with_names(init_params)), weights.patterns(dont_load)
  loaded, of_file = weights.read_file_and_options("vit", init_file)
  weights.check_options(of_file, options, source=init_file)
  older, loaded = vit_layouts.is_older(loaded), vit_layouts.current(loaded, init)
  loaded = weights.split_heads(weights.match_scan(loaded, init), init)

  def wanted(name: str) -> bool:
    alike = name in loaded and name in init and loaded[name].ndim == init[name].ndim
    return alike and trees.first_match(name, dont_load) is None

  with naming(init_file):
    if grid is None and "pos_embedding" in init:
      grid = grids.of_model(init["pos_embedding"].shape[1])
    facts = grids.facts(of_file, loaded)
    loaded, of_grid = grids.split(loaded, **facts, model=grid, exact=not older and "first" not in facts)
  if wanted("pos_embedding") and of_grid and grid:
    loaded["pos_embedding"] = patch_resize.resize_grid_by_corners(loaded["pos_embedding"], of_grid, grid)
  if wanted("embedding/kernel"):
    size = init["embedding/kernel"].shape[:2]
    loaded["embedding/kernel"] = resize_patches(loaded["embedding/kernel"], size)
  hint = _options_that_differ(loaded, init)
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file, hint=hint))


def _options_that_differ(loaded: dict[str, Any], init: dict[str, Any]) -> str:
  """Returns `"; its model has registers=4, ours 0"`, the options behind parameters that differ, or nothing."""
  theirs, ours = structure(loaded), structure(init)
  differ = [option for option in ours if option != "patch_size" and theirs.get(option, ours[option]) != ours[option]]
  return "".join(f"; its model has {option}={theirs[option]!r}, ours {ours[option]!r}" for option in differ)
