"""Convolutions with standardized weights and group normalization, as in Big Transfer (Kolesnikov et al. 2020)."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from core.sharding import constrain

Padding = str | Sequence[tuple[int, int]]


# What is added before the division: to the variance, as for the published weights of BiT (`resnet`), or to its root.
EpsilonOf = Literal["variance", "deviation"]


def standardize_weights(
  kernel: Float[Array, "height width inputs outputs"], epsilon: float, of: EpsilonOf = "variance"
) -> Float[Array, "height width inputs outputs"]:
  """Gives kernels mean 0 and variance 1 for each output (Qiao et al. 2019, eq. 4).

  Args:
    kernel: of a convolution.
    epsilon: keeps what divides from 0.
    of: divide by sqrt(variance + epsilon), or by deviation + epsilon.
  """
  kernel = kernel - kernel.mean(axis=(0, 1, 2))
  variance = (kernel**2).mean(axis=(0, 1, 2))
  if of == "variance":
    return kernel * jax.lax.rsqrt(variance + epsilon)
  # The root's slope at 0 has no bound, and what is the same everywhere is 0 whatever divides it.
  deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1))
  return kernel / (jnp.where(variance > 0, deviation, 0) + epsilon)


class StdConv(nn.Module):
  """A convolution without bias whose kernel is standardized on the fly, in float32 whatever the `dtype` of the product.

  Attributes:
    features: output channels.
    kernel_size, strides: (height, width) of each.
    padding: "SAME", "VALID" or pixels ((top, bottom), (left, right)).
    epsilon, epsilon_of: see `standardize_weights`.
    dtype: of the product and the result; None for that of the input.
  """

  features: int
  kernel_size: tuple[int, int]
  strides: tuple[int, int] = (1, 1)
  padding: Padding = "SAME"
  epsilon: float = 1e-10
  epsilon_of: EpsilonOf = "variance"
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch rows columns outputs"]:
    shape = (*self.kernel_size, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    kernel = standardize_weights(kernel, self.epsilon, self.epsilon_of)
    dtype = self.dtype or x.dtype
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
      x.astype(dtype), kernel.astype(dtype), self.strides, self.padding, dimension_numbers=layout
    )
    return constrain(y, "act_batch")


class GroupNorm(nn.Module):
  """Group normalization (Wu and He 2018) in float32; the result has the dtype of the input.

  Moments are taken of each channel first, then joined within its group: the image is never reshaped, and normalizing
  it is one multiplication and one addition.

  Attributes:
    num_groups: groups of neighbouring channels, whose number it must divide.
    epsilon: added to the variance.
    parameter_axes: axes of length 1 in front of the channels of `scale` and `bias`: 3 in the published BiT weights.
    scale_init: of `scale`; ones by default.
  """

  num_groups: int = 32
  epsilon: float = 1e-6
  parameter_axes: int = 0
  scale_init: nn.initializers.Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
    batch, _, _, channels = x.shape
    shape = (1,) * self.parameter_axes + (channels,)
    scale = self.param("scale", self.scale_init, shape).reshape(channels)
    bias = self.param("bias", nn.initializers.zeros, shape).reshape(channels)

    def of_group(per_channel: Float[Array, "batch channels"]) -> Float[Array, "batch 1 1 channels"]:
      grouped = per_channel.reshape(batch, self.num_groups, -1).mean(axis=-1)
      return jnp.repeat(grouped, channels // self.num_groups, axis=-1)[:, None, None]

    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The squares are of differences from the mean: E[x²] - E[x]² cancels where the mean is large.
    y = y - of_group(y.mean(axis=(1, 2)))
    factor = scale * jax.lax.rsqrt(of_group((y**2).mean(axis=(1, 2))) + self.epsilon)
    return (y * factor + bias).astype(x.dtype)
