"""Big Transfer's ResNet-v2: pre-activation, GroupNorm, weight standardization (Kolesnikov et al. 2020, section 3.1).

`core.models.bit` is the post-activation form; what both share (sizes, options, the head) is here.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from core import trees
from core.checkpoint import catalog
from core.errors import UserError
from core.models import weights
from core.models.layers import Intermediates
from core.models.std_conv import GroupNorm, StdConv
from core.recipe.models.options import NumClasses
from core.recipe.models.resnet import ResNet as Options
from core.recipe.parse import parse
from core.sharding import constrain

NUM_GROUPS = 32  # Of every group normalization.


def Model(
  num_classes: int | None = None, *, variant: str | None = None, name: str | None = None, **kw: Any
) -> "ResNetV2":
  """Returns the ResNet of `variant` ("50x1": depth 50, width 1); `kw` are `Options` that override it.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  options = parse(Options, {"variant": variant, **kw}, "model")
  return make(parse(NumClasses, num_classes, "num_classes"), options, name=name)


def make(num_classes: int | None, options: Options, *, name: str | None = None) -> "ResNetV2":
  """Returns the ResNet of these options, with a head of `num_classes` outputs; None or 0 for no head."""
  return ResNetV2(num_classes, options, name=name)


class ResidualUnit(nn.Module):
  """Three convolutions, each after GroupNorm and ReLU, beside a shortcut; the second one has the stride.

  The shortcut is a projection of the normalized input where the shape changes, else the input itself.
  """

  width: int
  strides: tuple[int, int] = (1, 1)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch rows columns outputs"]:
    conv = functools.partial(StdConv, dtype=self.dtype)
    shortcut = x
    x = nn.relu(_norm("gn1")(x))
    if shortcut.shape[-1] != 4 * self.width or self.strides != (1, 1):
      shortcut = conv(4 * self.width, (1, 1), name="conv_proj", strides=self.strides)(x)
    x = conv(self.width, (1, 1), name="conv1")(x)
    x = nn.relu(_norm("gn2")(x))
    x = conv(self.width, (3, 3), name="conv2", strides=self.strides, padding=((1, 1), (1, 1)))(x)
    x = nn.relu(_norm("gn3")(x))
    return constrain(shortcut + conv(4 * self.width, (1, 1), name="conv3")(x), "act_batch")


def _norm(name: str) -> GroupNorm:
  return GroupNorm(NUM_GROUPS, epsilon=1e-5, parameter_axes=3, name=name)


class RootBlock(nn.Module):
  """A 7x7 convolution and a max pooling, both of stride 2; zeros are put around the image before the convolution.

  By default the pooling has a border of zeros, too, which count: without normalization before it, features may be
  negative. So does the code by which the published weights were trained. big_vision's `bit_paper` pools what is in the
  image alone, as `padding="-inf"` does.
  """

  width: int
  dtype: DTypeLike | None = None
  padding: Literal["zero", "-inf"] = "zero"

  @nn.compact
  def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch rows columns width"]:
    conv = StdConv(self.width, (7, 7), (2, 2), padding=((3, 3), (3, 3)), dtype=self.dtype, name="conv_root")
    border = 0.0 if self.padding == "zero" else -jnp.inf
    x = jnp.pad(conv(x), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=border)
    return nn.max_pool(x, (3, 3), (2, 2), padding="VALID")


class Block(nn.Module):
  """`units` residual units of the class `unit`, the first with the stride; named by `naming` from 1 on."""

  units: int
  width: int
  strides: tuple[int, int]
  dtype: DTypeLike | None = None
  unit: Callable[..., nn.Module] = ResidualUnit
  naming: str = "unit{:02d}"

  @nn.compact
  def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch rows columns outputs"]:
    for i in range(self.units):
      x = self.unit(self.width, self.strides if i == 0 else (1, 1), self.dtype, name=self.naming.format(i + 1))(x)
    return x


class ResNetV2(nn.Module):
  """The root, blocks of residual units, GroupNorm, the mean over the image and a linear head.

  Made by `Model` or `make`.

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

    `train` changes nothing. The intermediates: "stem", "block1", ..., "pre_logits_2d" and "logits_2d" [batch, rows,
    columns, outputs], "pre_logits", "logits".

    Raises:
      UserError: images that are not [batch, height, width, channels].
    """
    options = self.options
    del train
    check_image(image.shape)
    out: Intermediates = {}
    width = round(64 * options.width)
    x = jnp.asarray(image, options.dtype_mm)
    x = out["stem"] = RootBlock(width, options.dtype_mm, options.root_padding, name="root_block")(x)
    for i, units in enumerate(options.units):
      strides = (1, 1) if i == 0 else (2, 2)
      x = out[f"block{i + 1}"] = Block(units, width * 2**i, strides, options.dtype_mm, name=f"block{i + 1}")(x)
    x = nn.relu(_norm("norm-pre-head")(x))
    return pool_and_classify(x, out, self.num_classes, options.head_zeroinit)


def check_image(shape: tuple[int, ...]) -> None:
  """Refuses a shape that is not that of a batch of images.

  Raises:
    UserError: it is not.
  """
  if len(shape) != 4:
    raise UserError(f"model: images must be [batch, height, width, channels], got {list(shape)}")


def pool_and_classify(
  x: Float[Array, "batch rows columns channels"], out: Intermediates, num_classes: int | None, head_zeroinit: bool
) -> tuple[Float[Array, "batch outputs"], Intermediates]:
  """Returns the mean over the image, in float32, through the module `head`; fills in what `ResNetV2.__call__` names."""
  x_2d = out["pre_logits_2d"] = x
  x = out["pre_logits"] = x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
  if num_classes:
    kernel_init = nn.initializers.zeros if head_zeroinit else nn.linear.default_kernel_init
    head = nn.Dense(num_classes, kernel_init=kernel_init, name="head")
    x, out["logits_2d"] = constrain(head(x), "act_batch", "act_classes"), head(x_2d)
    out["logits"] = x
  return x, out


def load(
  init_params: trees.PyTree, init_file: str, options: Options | None = None, dont_load: Sequence[str] = ()
) -> Any:
  """Returns the published weights of `init_file`, fitted to `init_params`.

  Names of older files are brought up to date. What a regex of `dont_load` matches whole keeps its value of
  `init_params`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: see `core.models.weights.read_file`; "M" or "M-ILSVRC2012" is the BiT of that kind and the model's size.
    options: of the model; its size only completes such a name.
    dont_load: regexes over names, `["head/.*"]` for a new task.

  Raises:
    UserError: an unreadable file, or one of another model (it names the first parameters that differ).
  """
  if options is not None:
    init_file = catalog.bit_name(init_file, options.depth, f"{options.width:g}")
  init, dont_load = dict(trees.flatten_with_names(init_params)), weights.patterns(dont_load)
  loaded = {_current_name(name): array for name, array in weights.read_file("resnet", init_file).items()}
  loaded = {name: current_shape(array, init.get(name)) for name, array in loaded.items()}
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file))


_OLDER_NAMES = [
  (r"(root_block)/standardized_conv2d/kernel", r"\1/conv_root/kernel"),
  (r"(block\d+/unit\d+)/a/proj/standardized_conv2d/kernel", r"\1/conv_proj/kernel"),
  *(
    rule
    for number, letter in enumerate("abc", start=1)
    for rule in (
      (rf"(block\d+/unit\d+)/{letter}/standardized_conv2d/kernel", rf"\1/conv{number}/kernel"),
      (rf"(block\d+/unit\d+)/{letter}/group_norm/gamma", rf"\1/gn{number}/scale"),
      (rf"(block\d+/unit\d+)/{letter}/group_norm/beta", rf"\1/gn{number}/bias"),
    )
  ),
  (r"group_norm/gamma", "norm-pre-head/scale"),
  (r"group_norm/beta", "norm-pre-head/bias"),
  (r"head/conv2d/(kernel|bias)", r"head/\1"),
]


def _current_name(name: str) -> str:
  """Returns today's name for one of the paper's first code, `resnet/block1/unit01/a/standardized_conv2d/kernel`."""
  name = name.removeprefix("resnet/")
  for older, current in _OLDER_NAMES:
    if match := re.fullmatch(older, name):
      return match.expand(current)
  return name


def current_shape(array: np.ndarray, init: jax.ShapeDtypeStruct | jax.Array | None) -> np.ndarray:
  """Returns the array with the axes of length 1 that the model has.

  The paper's first code had a 1x1 convolution for a head, and vectors for scales; big_vision's first `bit` had four
  axes.
  """
  if init is not None and _without_ones(array.shape) == _without_ones(init.shape):
    return array.reshape(init.shape)
  return array


def _without_ones(shape: tuple[int, ...]) -> list[int]:
  return [size for size in shape if size != 1]
