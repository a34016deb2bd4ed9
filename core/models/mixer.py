"""MLP-Mixer (Tolstikhin et al. 2021): patches that exchange their features through MLPs alone."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from core import trees
from core.errors import UserError, naming
from core.models import grids, patch_resize, weights
from core.models.layers import Intermediates
from core.recipe.models.mixer import Mixer as Options
from core.recipe.models.options import NumClasses
from core.recipe.parse import parse
from core.sharding import constrain


def Model(
  num_classes: int | None = None, *, variant: str | None = None, name: str | None = None, **kw: Any
) -> "MlpMixer":
  """Returns the Mixer of `variant` ("B/16", "H/14", "S"); `kw` are `Options` that override it.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  options = parse(Options, {"variant": variant, **kw}, "model")
  return make(parse(NumClasses, num_classes, "num_classes"), options, name=name)


def make(num_classes: int | None, options: Options, *, name: str | None = None) -> "MlpMixer":
  """Returns the Mixer of these options, with a head of `num_classes` outputs; None or 0 for no head."""
  return MlpMixer(num_classes, options, name=name)


class MixerMlp(nn.Module):
  """Dense, GELU, Dense, over the last axis (Tolstikhin et al. 2021, eq. 1)."""

  mlp_dim: int
  gelu: str = "tanh"
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    y = nn.Dense(self.mlp_dim, dtype=self.dtype)(x)
    y = nn.gelu(y, approximate=self.gelu == "tanh")
    return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class MixerBlock(nn.Module):
  """x + token MLP(LN(x)) along the patches, then x + channel MLP(LN(x)) along the features; each may be skipped.

  What is not skipped stays as it is, in training and in evaluation: the published models were trained so. Other
  families here divide it by the rate of keeping, see `core.models.layers.skip_examples`.
  """

  tokens_mlp_dim: int
  channels_mlp_dim: int
  skip_rate: float = 0.0
  gelu: str = "tanh"
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "batch tokens dim"], *, train: bool = False) -> Float[Array, "batch tokens dim"]:
    x = constrain(x, "act_batch")
    y = nn.LayerNorm()(x).swapaxes(1, 2)
    y = MixerMlp(self.tokens_mlp_dim, self.gelu, self.dtype, name="token_mixing")(y)
    x = constrain(x + self._skip(y.swapaxes(1, 2), train), "act_batch")
    y = nn.LayerNorm()(x)
    y = MixerMlp(self.channels_mlp_dim, self.gelu, self.dtype, name="channel_mixing")(y)
    return constrain(x + self._skip(y, train), "act_batch")

  def _skip(self, y: Float[Array, "batch tokens dim"], train: bool) -> Float[Array, "batch tokens dim"]:
    if not train or not self.skip_rate:
      return y
    skipped = jax.random.bernoulli(self.make_rng("dropout"), self.skip_rate, (len(y), 1, 1))
    return jnp.where(skipped, 0, y)


class MlpMixer(nn.Module):
  """Patches, mixer blocks, LayerNorm, the mean of the patches and a linear head. Made by `Model` or `make`.

  Attributes:
    num_classes: outputs of the head; None or 0 for no head (the output is the representation).
    options: of the model.
  """

  num_classes: int | None = None
  options: Options = Options()

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width channels"], *, train: bool = False
  ) -> tuple[Float[Array, "batch outputs"], Intermediates]:
    """Maps images, values in [-1, 1], to (logits or representation, named intermediates).

    `train` turns stochastic depth on, which draws from the rng "dropout". The intermediates: "stem" [batch, rows,
    columns, dim], "input_tokens", "block_0", ..., "pre_logits", "logits".

    Raises:
      UserError: an image whose size the patches do not divide, or with another number of patches than the parameters.
    """
    options = self.options
    out: Intermediates = {}
    self._check_image(image.shape)
    if self.is_initializing():
      grids.note(*grids.of_image(image.shape[1:3], options.patch_size))
    conv = nn.Conv(
      options.hidden_dim,
      options.patch_size,
      strides=options.patch_size,
      padding="VALID",
      name="stem",
      dtype=options.dtype_mm,
    )
    x = out["stem"] = conv(jnp.asarray(image, options.dtype_mm))
    x = out["input_tokens"] = x.reshape(x.shape[0], -1, options.hidden_dim)
    for i, rate in enumerate(np.linspace(0, options.stoch_depth, options.num_blocks).tolist()):
      block = MixerBlock(
        options.tokens_mlp_dim, options.channels_mlp_dim, rate, options.gelu, options.dtype_mm, name=f"MixerBlock_{i}"
      )
      x = out[f"block_{i}"] = block(x, train=train)
    x = nn.LayerNorm(name="pre_head_layer_norm")(x)
    x = out["pre_logits"] = x.mean(axis=1)
    if self.num_classes:
      kernel_init = nn.initializers.zeros if options.head_zeroinit else nn.linear.default_kernel_init
      logits = nn.Dense(self.num_classes, kernel_init=kernel_init, name="head")(x)
      x = out["logits"] = constrain(logits, "act_batch", "act_classes")
    return x, out

  def _check_image(self, shape: tuple[int, ...]) -> None:
    size, patch = shape[1:3], self.options.patch_size
    if len(shape) != 4 or size[0] % patch[0] or size[1] % patch[1]:
      raise UserError(
        f"model: images must be [batch, height, width, channels] with a size divisible by the patch size "
        f"{patch[0]}x{patch[1]}, got {list(shape)}"
      )
    if self.has_variable("params", "MixerBlock_0"):
      rows, columns = size[0] // patch[0], size[1] // patch[1]
      made_for = self.get_variable("params", "MixerBlock_0")["token_mixing"]["Dense_0"]["kernel"].shape[0]
      if rows * columns != made_for:
        raise UserError(
          f"model: the image has {rows}x{columns} patches, but the token-mixing MLPs were made for {made_for}; "
          "a Mixer is bound to one number of patches"
        )


def load(
  init_params: trees.PyTree, init_file: str, options: Options | None = None, dont_load: Sequence[str] = ()
) -> Any:
  """Returns the published weights of `init_file`, fitted to `init_params`.

  Names of older files are brought up to date, and a patch embedding of another size is resized. What a regex of
  `dont_load` matches whole keeps its value of `init_params`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: see `core.models.weights.read_file`; "B-i21k/16" and the like are known by name.
    options: of the model. Where they are given, weights of another library whose model computes otherwise (the
      exact GELU) are refused.
    dont_load: regexes over names, `["head/.*"]` for a new task.

  Raises:
    UserError: an unreadable file, one of another model, or one trained with another number of patches.
  """
  init, dont_load = dict(trees.flatten_with_names(init_params)), weights.patterns(dont_load)
  loaded, of_file = weights.read_file_and_options("mixer", init_file)
  weights.check_options(of_file, options, source=init_file)
  loaded = weights.renumber_modules(trees.from_names(loaded))
  loaded = {_current_name(name): array for name, array in trees.flatten_with_names(loaded)}
  _refuse_other_grid(loaded, of_file, init, dont_load, init_file)
  stem = "stem/kernel"
  if stem in loaded and stem in init and trees.first_match(stem, dont_load) is None:
    loaded[stem] = patch_resize.resample_patch_embedding(loaded[stem], init[stem].shape[:2])
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file))


def _current_name(name: str) -> str:
  """Returns today's name for one from before linen: `Mixer/encoderblock_0/token_mixing_phase_0/kernel1` and so on."""
  match name.split("/"):
    case ["embedding", parameter]:
      return f"stem/{parameter}"
    case ["Mixer", "encoder_norm", parameter]:
      return f"pre_head_layer_norm/{parameter}"
    case ["Mixer", block, "token_mixing_phase_0" | "channel_mixing_phase_0" as mlp, parameter]:
      kind, layer = parameter[:-1], int(parameter[-1]) - 1
      return f"{_current_block(block)}/{mlp.removesuffix('_phase_0')}/Dense_{layer}/{kind}"
    case ["Mixer", block, *rest]:
      return "/".join([_current_block(block), *rest])
  return name


def _current_block(block: str) -> str:
  return block.replace("encoderblock_", "MixerBlock_")


def _refuse_other_grid(
  loaded: dict[str, jax.Array], of_file: dict[str, Any], init: dict[str, Any], dont_load: Sequence[str], source: str
) -> None:
  name = grids.MIXED
  if name not in loaded or name not in init or trees.first_match(name, dont_load) is not None:
    return
  theirs, ours = loaded[name].shape[0], init[name].shape[0]
  if theirs != ours:
    raise UserError(
      f"{source}: trained with {theirs} patches an image, but this model has {ours}: a Mixer's token-mixing MLPs are "
      "bound to their number; keep the ratio of image size to patch size of the file"
    )
  model, kernel = grids.of_model(ours), {"embedding/kernel": loaded.get("stem/kernel")}
  with naming(source):
    _, grid = grids.of_file(theirs, first=(0,), model=model, told=grids.facts(of_file, kernel)["told"])
  if model and grid != model:
    raise UserError(
      f"{source}: trained with {grid[0]}x{grid[1]} patches an image, but this model has {model[0]}x{model[1]}: a "
      "Mixer's token-mixing MLPs are bound to their grid"
    )
