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

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from core import trees
from core.errors import UserError
from core.models import weights
from core.models.layers import Intermediates, skip_examples
from core.recipe.models.nfnet import NFNet as Options
from core.recipe.models.options import NumClasses
from core.recipe.parse import parse
from core.sharding import constrain, on_own_examples

# What makes the variance of the activation of a standard normal variable 1, as the authors measured it.
GAMMA = {"gelu": 1.7015043497085571, "silu": 1.7881293296813965, "relu": 1.7139588594436646}


def Model(num_classes: int | None = None, *, variant: str | None = None, name: str | None = None, **kw: Any) -> "NFNet":
  """Returns the NFNet of `variant` ("F0" to "F6"); `kw` are `Options` that override it.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  options = parse(Options, {"variant": variant, **kw}, "model")
  return make(parse(NumClasses, num_classes, "num_classes"), options, name=name)


def make(num_classes: int | None, options: Options, *, name: str | None = None) -> "NFNet":
  """Returns the NFNet of these options, with a head of `num_classes` outputs; None or 0 for no head."""
  return NFNet(num_classes, options, name=name)


def scaled_activation(activation: str, gelu: str = "tanh") -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
  """Returns the function of that name times its constant of `GAMMA`, which keeps the variance of normal values."""
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
  """Returns the weights that `ScaledStdConv` applies: mean 0 and norm `gain` for each output."""
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
  activation: Callable[[Float[Array, "..."]], Float[Array, "..."]]
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
    """Maps images, normalized by ImageNet's mean and deviation in the published models, to (logits, intermediates).

    `train` turns dropout and stochastic depth on, which draw from the rng "dropout". The intermediates: "stem", the
    output of each block by its name ("stage0_block0", ...), "pre_logits_2d" [batch, rows, columns, final_width], its
    mean "pre_logits", and "logits".

    Raises:
      UserError: an image that is not [batch, height, width, channels].
    """
    options = self.options
    if image.ndim != 4:
      raise UserError(f"images must be [batch, height, width, channels], got {list(image.shape)}")
    out: Intermediates = {}
    x = out["stem"] = self._stem(jnp.asarray(image, options.dtype_mm))
    for before, ((stage, i), deviation) in enumerate(expected_deviations(options.depth, options.alpha).items()):
      block = self._block(stage, i, before, 1 / deviation)
      x = out[block.name] = block(x, train)
    x = ScaledStdConv(options.final_width, 1, dtype=options.dtype_mm, name="final_conv")(x)
    x = out["pre_logits_2d"] = scaled_activation(options.activation, options.gelu)(x)
    x = out["pre_logits"] = x.mean(axis=(1, 2))
    if self.num_classes:
      x = nn.Dropout(options.dropout)(x, not train)
      kernel_init = nn.initializers.zeros if options.head_zeroinit else nn.initializers.normal(0.01)
      logits = nn.Dense(self.num_classes, kernel_init=kernel_init, name="head")(x)
      x = out["logits"] = constrain(logits, "act_batch", "act_classes")
    return x, out

  def _stem(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w stem_width"]:
    options = self.options
    activation = scaled_activation(options.activation, options.gelu)
    for i, (part, stride) in enumerate(((8, 2), (4, 1), (2, 1), (1, 2))):
      x = activation(x) if i else x
      x = ScaledStdConv(options.stem_width // part, 3, stride, dtype=options.dtype_mm, name=f"stem_conv{i}")(x)
    return x

  def _block(self, stage: int, i: int, before: int, beta: float) -> NFBlock:
    """Returns block `i` of a stage, with `before` blocks before it in all."""
    options = self.options
    width = options.width[stage]
    inner = int(width * options.bottleneck)
    return NFBlock(
      width,
      inner,
      scaled_activation(options.activation, options.gelu),
      stride=2 if stage and not i else 1,
      beta=beta,
      alpha=options.alpha,
      groups=inner // options.group_size,
      se_hidden=max(1, int(width * options.se_ratio)),
      skip_rate=options.stoch_depth * before / sum(options.depth),
      dtype=options.dtype_mm,
      name=f"stage{stage}_block{i}",
    )


def expected_deviations(depth: Sequence[int], alpha: float) -> dict[tuple[int, int], float]:
  """Returns the expected deviation of the input of each block (stage, i) at the start (Brock et al. 2021, section 3).

  Each block adds alpha^2 to the variance. The shortcut of a stage's first block starts from the normalized input, so
  the variance starts anew at 1 there.
  """
  deviations, variance = {}, 1.0
  for stage, blocks in enumerate(depth):
    for i in range(blocks):
      deviations[stage, i] = math.sqrt(variance)
      variance = (variance if i else 1.0) + alpha**2
  return deviations


def load(
  init_params: trees.PyTree, init_file: str, options: Options | None = None, dont_load: Sequence[str] = ()
) -> Any:
  """Returns the weights of `init_file`, fitted to `init_params`; what `dont_load` matches keeps its fresh value.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: see `core.models.weights.read_file`. timm's files (dm_nfnet_f0 to f6) hold the authors' weights.
    options: of the model. Where they are given, weights of another library whose model computes otherwise (the
      exact GELU) are refused.
    dont_load: regexes over names, `["head/.*"]` for a new task.

  Raises:
    UserError: an unreadable file, or one of another model (it names the first parameters that differ).
  """
  loaded, of_file = weights.read_file_and_options("nfnet", init_file)
  weights.check_options(of_file, options, source=init_file)
  init, dont_load = dict(trees.flatten_with_names(init_params)), weights.patterns(dont_load)
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file))
