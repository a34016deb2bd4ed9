"""A small residual network with batch normalization: a model whose variables are not all parameters."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from core.models.layers import Intermediates


class BatchNormResNet(nn.Module):
  """A convolution, two-convolution residual blocks with batch normalization, the mean over the image and a head.

  In training each normalization takes the mean and the variance of the batch (Ioffe and Szegedy 2015) and moves its
  running averages, the collection `batch_stats`, towards them; otherwise it takes the averages. It names no axis: under
  `jit` a batch is one array, however many devices hold it, and so its mean is that of all examples.

  Attributes:
    num_classes: outputs of the head.
    widths: channels of each block; every block but the first halves the size of the image.
    momentum: of the running averages: the share that they keep in each step.
  """

  num_classes: int = 10
  widths: tuple[int, ...] = (8, 16)
  momentum: float = 0.9

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width channels"], *, train: bool = False
  ) -> tuple[Float[Array, "batch classes"], Intermediates]:
    """Maps images to (logits, named intermediates); with `train` it needs `mutable=["batch_stats"]`."""
    out: Intermediates = {}
    x = out["stem"] = self._conv(image, self.widths[0], "stem", 1, train)
    for i, width in enumerate(self.widths):
      x = out[f"block{i}"] = self._block(jax.nn.relu(x), width, f"block{i}", 2 if i else 1, train)
    x = out["pre_logits"] = jax.nn.relu(x).mean(axis=(1, 2))
    out["logits"] = nn.Dense(self.num_classes, name="head")(x)
    return out["logits"], out

  def _block(
    self, x: Float[Array, "batch height width channels"], width: int, name: str, stride: int, train: bool
  ) -> Float[Array, "batch rows columns features"]:
    y = self._conv(x, width, f"{name}_conv0", stride, train)
    y = self._conv(jax.nn.relu(y), width, f"{name}_conv1", 1, train)
    changes = stride > 1 or x.shape[-1] != width
    return y + (self._conv(x, width, f"{name}_shortcut", stride, train) if changes else x)

  def _conv(
    self, x: Float[Array, "batch height width channels"], width: int, name: str, stride: int, train: bool
  ) -> Float[Array, "batch rows columns features"]:
    """Convolves by 3x3, zeros put around the image, and normalizes."""
    conv = nn.Conv(width, (3, 3), (stride, stride), padding=1, use_bias=False, name=name)
    return nn.BatchNorm(use_running_average=not train, momentum=self.momentum, name=f"{name}_norm")(conv(x))
