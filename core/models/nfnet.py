"""NFNets, residual networks without normalization (Brock et al. 2021, arXiv:2102.06171), F0 to F6 as published.

Parameters have names near those of the authors' code, with `kernel` and `bias` for its `w` and `b`:

    stem_conv{0..3}/{kernel, bias, gain}
    stage{s}_block{i}/{conv0, conv1, conv1b, conv2}/{kernel, bias, gain}      there blocks are counted through
    stage{s}_block{i}/conv_shortcut/{kernel, bias, gain}                      the first block of a stage
    stage{s}_block{i}/se/{fc0, fc1}/{kernel, bias}                            squeeze and excitation
    stage{s}_block{i}/skip_gain                                               a scalar
    final_conv/{kernel, bias, gain}, head/{kernel, bias}

Activations keep their variance at the start without any normalization: kernels are standardized as they are used,
activations scaled to unit variance, and the input of each residual branch is divided by its expected deviation, which
is known beforehand. Train them with `agc` (adaptive gradient clipping, see core.optim.optimizer).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from core import trees
from core.errors import UserError, nearest
from core.models import options, weights
from core.models.layers import Intermediates, skip_examples
from core.sharding import constrain, on_own_examples


@dataclasses.dataclass(frozen=True)
class Variant:
  """What tells the published models apart.

  Attributes:
    depth: blocks of each stage.
    dropout: its rate before the head.
    train_size, test_size: pixels a side of the images for training and for evaluation.
  """

  depth: tuple[int, int, int, int]
  dropout: float
  train_size: int
  test_size: int


# Brock et al. 2021, table 1 and appendix A: FN has N + 1 times the blocks of F0.
VARIANTS = {
  "F0": Variant((1, 2, 6, 3), 0.2, 192, 256),
  "F1": Variant((2, 4, 12, 6), 0.3, 224, 320),
  "F2": Variant((3, 6, 18, 9), 0.4, 256, 352),
  "F3": Variant((4, 8, 24, 12), 0.4, 320, 416),
  "F4": Variant((5, 10, 30, 15), 0.5, 384, 512),
  "F5": Variant((6, 12, 36, 18), 0.5, 416, 544),
  "F6": Variant((7, 14, 42, 21), 0.5, 448, 576),
}

# What makes the variance of the activation of a standard normal variable 1, as the authors measured it.
GAMMA = {"gelu": 1.7015043497085571, "silu": 1.7881293296813965, "relu": 1.7139588594436646}

_CHOICES = {"activation": tuple(GAMMA), "gelu": ("tanh", "exact"), "dtype_mm": ("float32", "bfloat16")}


def Model(num_classes: int | None = None, *, variant: str | None = None, **kw: Any) -> "NFNet":
  """The NFNet of `variant` ("F0" to "F6"); options in `kw` (the fields of `NFNet`) override the variant's.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  if variant is not None and variant not in VARIANTS:
    raise UserError(f"model: unknown NFNet variant {variant!r}{nearest(str(variant), VARIANTS)}")
  given = {} if variant is None else dict(depth=VARIANTS[variant].depth, dropout=VARIANTS[variant].dropout)
  given |= kw
  options.known(NFNet, given, what="NFNet")
  for option in ("width", "depth"):
    if isinstance(given.get(option), Sequence):
      given[option] = tuple(given[option])
  model = NFNet(num_classes, **given)
  _check(model)
  return model


def _check(model: "NFNet") -> None:
  options.check_choices(model, _CHOICES)
  for option in ("width", "depth"):
    value = getattr(model, option)
    if not isinstance(value, tuple) or not value or not all(map(options.is_positive, value)):
      raise UserError(f"model: {option} must be a list of positive whole numbers, one a stage, got {value!r}")
  if len(model.width) != len(model.depth):
    raise UserError(f"model: width names {len(model.width)} stages, depth {len(model.depth)}")
  options.check_positive(model, "stem_width", "final_width", "group_size")
  if model.stem_width % 8:
    raise UserError(f"model: stem_width must be a multiple of 8, got {model.stem_width}")
  for option in ("bottleneck", "se_ratio", "alpha"):
    if not isinstance(value := getattr(model, option), int | float) or not value > 0:
      raise UserError(f"model: {option} must be a number greater than 0, got {value!r}")
  for width in model.width:
    inner = width * model.bottleneck
    if inner % model.group_size:
      raise UserError(
        f"model: width {width} times bottleneck {model.bottleneck} is {inner:g}, no multiple of group_size "
        f"{model.group_size}"
      )
  options.check_rates(model, "dropout", "stoch_depth")


def scaled_activation(activation: str, gelu: str = "tanh") -> Callable[[jax.Array], jax.Array]:
  """The function of that name times its constant of `GAMMA`: values of unit variance from standard normal ones."""
  functions = {"gelu": functools.partial(nn.gelu, approximate=gelu == "tanh"), "silu": nn.silu, "relu": nn.relu}
  return lambda x: functions[activation](x) * GAMMA[activation]


class ScaledStdConv(nn.Module):
  """A convolution ("SAME") with scaled weight standardization (Brock et al. 2021, eq. 1).

  Over the fan-in N of each output, with mean m and variance v of its weights:

      W' = gain * (W - m) / sqrt(max(N * v, 1e-4))

  An input of independent values with variance 1 gives outputs of variance `gain`^2. Standardized in float32, applied in
  `dtype`. `groups` splits the channels.
  """

  features: int
  kernel_size: int
  stride: int = 1
  groups: int = 1
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
    shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
    kernel = self.param("kernel", nn.initializers.variance_scaling(1.0, "fan_in", "normal"), shape)
    gain = self.param("gain", nn.initializers.ones, (self.features,))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    convolve = functools.partial(
      jax.lax.conv_general_dilated,
      window_strides=(self.stride, self.stride),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=self.groups,
    )
    # Of several groups the compiler would gather the whole batch.
    y = on_own_examples(convolve, x.astype(self.dtype), standardize(kernel, gain).astype(self.dtype))
    return y + bias.astype(self.dtype)


def standardize(
  kernel: Float[Array, "height width inputs outputs"], gain: Float[Array, "outputs"]
) -> Float[Array, "height width inputs outputs"]:
  """The weights that `ScaledStdConv` applies: mean 0 and norm `gain` for each output."""
  fan_in = math.prod(kernel.shape[:-1])
  variance = jnp.var(kernel, axis=(0, 1, 2))
  scale = gain * jax.lax.rsqrt(jnp.maximum(fan_in * variance, 1e-4))
  return (kernel - jnp.mean(kernel, axis=(0, 1, 2))) * scale


class SqueezeExcite(nn.Module):
  """Scales channels by a gate in (0, 1) computed from their means over the image (Hu et al. 2018)."""

  hidden: int
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    gate = nn.Dense(self.hidden, dtype=self.dtype, name="fc0")(x.mean(axis=(1, 2)))
    gate = nn.Dense(x.shape[-1], dtype=self.dtype, name="fc1")(nn.relu(gate))
    return x * nn.sigmoid(gate)[:, None, None, :]


class NFBlock(nn.Module):
  """shortcut + alpha * skip_gain * branch(beta * f(x)): bottleneck, two grouped 3x3 convolutions, squeeze and excite.

  `f` is the activation of unit variance, `beta` one over the expected deviation of `x`. Where the block changes size
  (the first of a stage), the shortcut is average pooling, if the block strides, and a 1x1 convolution.
  """

  width: int
  inner: int
  activation: Callable[[jax.Array], jax.Array]
  stride: int = 1
  beta: float = 1.0
  alpha: float = 0.2
  groups: int = 1
  se_hidden: int = 1
  skip_rate: float = 0.0
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch height width channels"], train: bool = False
  ) -> Float[Array, "batch h w width"]:
    y = self.activation(x) * self.beta
    shortcut = self._shortcut(y) if self.stride > 1 or x.shape[-1] != self.width else x
    y = self._conv("conv0", self.inner, 1)(y)
    y = self._conv("conv1", self.inner, 3, self.stride, self.groups)(self.activation(y))
    y = self._conv("conv1b", self.inner, 3, 1, self.groups)(self.activation(y))
    y = self._conv("conv2", self.width, 1)(self.activation(y))
    # The gate is 1/2 on average at the start: without the factor the variance would not be kept.
    y = 2 * SqueezeExcite(self.se_hidden, self.dtype, name="se")(y)
    if train and self.skip_rate:
      # Published without the division by the rate of keeping, which `skip_examples` does.
      y = skip_examples(self.make_rng("dropout"), y, self.skip_rate) * (1 - self.skip_rate)
    skip_gain = self.param("skip_gain", nn.initializers.zeros, ())
    return constrain(shortcut + y * (self.alpha * skip_gain).astype(y.dtype), "act_batch")

  def _shortcut(self, y: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w width"]:
    if self.stride > 1:
      window = (self.stride, self.stride)
      y = nn.avg_pool(y, window, strides=window, padding="SAME", count_include_pad=False)
    return self._conv("conv_shortcut", self.width, 1)(y)

  def _conv(self, name: str, features: int, size: int, stride: int = 1, groups: int = 1) -> ScaledStdConv:
    return ScaledStdConv(features, size, stride, groups, self.dtype, name=name)


class NFNet(nn.Module):
  """A stem of four convolutions, stages of residual blocks, an expanding convolution, the mean and a linear head.

  Made by `Model`, which checks the options.

  Attributes:
    num_classes: outputs of the head; None or 0 for no head (the output is the representation).
    width, depth: channels and blocks of each stage; the first stage keeps the size of the stem's output, each later one
      halves it. Images are reduced 32 times by four stages.
    stem_width, final_width: channels of the stem and of the last convolution.
    bottleneck: width inside a residual branch, relative to that of the stage.
    group_size: channels of a group of the 3x3 convolutions.
    se_ratio: units of squeeze and excitation relative to the width.
    alpha: factor on the residual branches.
    activation: "gelu", "silu" or "relu".
    gelu: "tanh" (its approximation, as published) or "exact".
    dropout: rate before the head.
    stoch_depth: rate at which an example skips a residual branch; grows linearly from 0 at the first block, and would
      be reached one block after the last.
    head_zeroinit: start with a head of zeros instead of normal values of deviation 0.01.
    dtype_mm: of the convolutions and activations, "float32" or "bfloat16"; parameters and logits are float32 in both.
  """

  num_classes: int | None = None
  width: tuple[int, ...] = (256, 512, 1536, 1536)
  depth: tuple[int, ...] = (1, 2, 6, 3)
  stem_width: int = 128
  final_width: int = 3072
  bottleneck: float = 0.5
  group_size: int = 128
  se_ratio: float = 0.5
  alpha: float = 0.2
  activation: str = "gelu"
  gelu: str = "tanh"
  dropout: float = 0.2
  stoch_depth: float = 0.25
  head_zeroinit: bool = False
  dtype_mm: str = "float32"

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width channels"], *, train: bool = False
  ) -> tuple[Float[Array, "batch outputs"], Intermediates]:
    """Maps images, normalized by ImageNet's mean and deviation in the published models, to (logits, intermediates).

    `train` turns dropout and stochastic depth on, which draw from the rng "dropout". The intermediates: "stem", the
    output of each block by its name ("stage0_block0", ...), "pre_logits_2d" [batch, rows, columns, final_width], its
    mean "pre_logits", and "logits".

    Raises:
      UserError: an image that is not [batch, height, width, channels].
    """
    if image.ndim != 4:
      raise UserError(f"model: images must be [batch, height, width, channels], got {list(image.shape)}")
    out: Intermediates = {}
    x = out["stem"] = self._stem(jnp.asarray(image, self.dtype_mm))
    for before, ((stage, i), deviation) in enumerate(expected_deviations(self.depth, self.alpha).items()):
      block = self._block(stage, i, before, 1 / deviation)
      x = out[block.name] = block(x, train)
    x = ScaledStdConv(self.final_width, 1, dtype=self.dtype_mm, name="final_conv")(x)
    x = out["pre_logits_2d"] = scaled_activation(self.activation, self.gelu)(x)
    x = out["pre_logits"] = x.mean(axis=(1, 2))
    if self.num_classes:
      x = nn.Dropout(self.dropout)(x, not train)
      kernel_init = nn.initializers.zeros if self.head_zeroinit else nn.initializers.normal(0.01)
      logits = nn.Dense(self.num_classes, kernel_init=kernel_init, name="head")(x)
      x = out["logits"] = constrain(logits, "act_batch", "act_classes")
    return x, out

  def _stem(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w stem_width"]:
    activation = scaled_activation(self.activation, self.gelu)
    for i, (part, stride) in enumerate(((8, 2), (4, 1), (2, 1), (1, 2))):
      x = activation(x) if i else x
      x = ScaledStdConv(self.stem_width // part, 3, stride, dtype=self.dtype_mm, name=f"stem_conv{i}")(x)
    return x

  def _block(self, stage: int, i: int, before: int, beta: float) -> NFBlock:
    """Block `i` of a stage, with `before` blocks before it in all."""
    width = self.width[stage]
    inner = int(width * self.bottleneck)
    return NFBlock(
      width,
      inner,
      scaled_activation(self.activation, self.gelu),
      stride=2 if stage and not i else 1,
      beta=beta,
      alpha=self.alpha,
      groups=inner // self.group_size,
      se_hidden=max(1, int(width * self.se_ratio)),
      skip_rate=self.stoch_depth * before / sum(self.depth),
      dtype=self.dtype_mm,
      name=f"stage{stage}_block{i}",
    )


def expected_deviations(depth: Sequence[int], alpha: float) -> dict[tuple[int, int], float]:
  """Of the input of each block (stage, i) at the start (Brock et al. 2021, section 3).

  Each block adds alpha^2 to the variance. The shortcut of a stage's first block starts from the normalized input, so
  the variance starts anew at 1 there.
  """
  deviations, variance = {}, 1.0
  for stage, blocks in enumerate(depth):
    for i in range(blocks):
      deviations[stage, i] = math.sqrt(variance)
      variance = (variance if i else 1.0) + alpha**2
  return deviations


def load(init_params: trees.PyTree, init_file: str, model_cfg: Any = None, dont_load: Sequence[str] = ()) -> Any:
  """The weights of `init_file`, fitted to `init_params`; names that `dont_load` matches keep their value of those.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: see `core.models.weights.read_file`. timm's files (dm_nfnet_f0 to f6) hold the authors' weights.
    model_cfg: the model's options. Where they are given, weights of another library whose model computes otherwise (the
      exact GELU) are refused.
    dont_load: regexes over names, `["head/.*"]` for a new task.

  Raises:
    UserError: an unreadable file, or one of another model (it names the first parameters that differ).
  """
  loaded, of_file = weights.read_file_and_options("nfnet", init_file)
  if model_cfg is not None:
    weights.check_options(of_file, Model(**model_cfg), model_cfg, source=init_file)
  init = dict(trees.flatten_with_names(init_params))
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file))
