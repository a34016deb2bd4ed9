"""The post-activation ResNet with GroupNorm and weight standardization: `model_name="bit"`.

He et al. 2016's ResNet, its stride on the 3x3 convolutions, with the normalizations of Big Transfer (Kolesnikov et al.
2020). The model of that paper, pre-activation, and its published weights are `core.models.resnet`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from core import trees
from core.models import resnet, weights
from core.models.layers import Intermediates
from core.models.resnet import NUM_GROUPS
from core.models.std_conv import GroupNorm, StdConv
from core.sharding import constrain


def Model(num_classes: int | None = None, *, variant: str | None = None, **kw: Any) -> "ResNet":
  """The ResNet of `variant` ("50x1": depth 50, width 1); options in `kw` (the fields of `ResNet`) override it.

  Raises:
    UserError: an unknown variant, option or value of an option.
  """
  return resnet.make(ResNet, num_classes, variant, kw)


class ResidualUnit(nn.Module):
  """Three convolutions with GroupNorm, the second with the stride, added to a shortcut; ReLU after the sum.

  The last GroupNorm starts with a scale of 0: at first each unit passes on its input.
  """

  width: int
  strides: tuple[int, int] = (1, 1)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch rows columns outputs"]:
    conv = lambda features, size, name, **kw: StdConv(features, size, epsilon=1e-10, dtype=self.dtype, name=name, **kw)
    norm = lambda name, **kw: GroupNorm(NUM_GROUPS, name=name, **kw)
    shortcut = x
    if x.shape[-1] != 4 * self.width or self.strides != (1, 1):
      shortcut = conv(4 * self.width, (1, 1), "conv_proj", strides=self.strides)(x)
      shortcut = norm("gn_proj")(shortcut)
    x = nn.relu(norm("gn1")(conv(self.width, (1, 1), "conv1")(x)))
    x = nn.relu(norm("gn2")(conv(self.width, (3, 3), "conv2", strides=self.strides)(x)))
    x = norm("gn3", scale_init=nn.initializers.zeros)(conv(4 * self.width, (1, 1), "conv3")(x))
    return constrain(nn.relu(shortcut + x), "act_batch")


class ResNet(nn.Module):
  """The root, blocks of residual units, the mean over the image and a linear head. Made by `Model`.

  Attributes:
    num_classes: outputs of the head; None or 0 for no head (the output is the representation).
    width: multiplies all numbers of channels.
    depth: layers (a key of `resnet.UNITS`), or the number of units in each block.
    head_zeroinit: start with a head of zeros.
    dtype_mm: of the convolutions and activations, "float32" or "bfloat16"; parameters, the standardization of weights,
      GroupNorm's arithmetic and logits are float32 in both.
  """

  num_classes: int | None = None
  width: float = 1
  depth: int | tuple[int, ...] = 50
  head_zeroinit: bool = True
  dtype_mm: str = "float32"

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
    del train
    resnet.check_image(image.shape)
    out: Intermediates = {}
    width = round(64 * self.width)
    x = StdConv(width, (7, 7), (2, 2), dtype=self.dtype_mm, name="conv_root")(jnp.asarray(image, self.dtype_mm))
    x = nn.relu(GroupNorm(NUM_GROUPS, name="gn_root")(x))
    x = out["stem"] = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
    for i, units in enumerate(resnet.units_of(self.depth)):
      strides = (1, 1) if i == 0 else (2, 2)
      block = resnet.Block(units, width * 2**i, strides, self.dtype_mm, ResidualUnit, "unit{}", name=f"block{i + 1}")
      x = out[f"block{i + 1}"] = block(x)
    return resnet.pool_and_classify(x, out, self.num_classes, self.head_zeroinit)


def load(init_params: trees.PyTree, init_file: str, model_cfg: Any = None, dont_load: Sequence[str] = ()) -> Any:
  """The weights of `init_file`, fitted to `init_params`; what a regex of `dont_load` matches keeps its fresh value.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: see `core.models.weights.read_file`.
    model_cfg: the model's options; `init_params` already tells what this family needs of them.
    dont_load: regexes over names, `["head/.*"]` for a new task.

  Raises:
    UserError: an unreadable file, or one of another model (it names the first parameters that differ).
  """
  del model_cfg
  init = dict(trees.flatten_with_names(init_params))
  return trees.from_names(weights.merge(weights.read_file("bit", init_file), init, dont_load, source=init_file))
