"""The post-activation ResNet with GroupNorm and weight standardization: `model_name="bit"`.

He et al. 2016's ResNet, its stride on the 3x3 convolutions, with the normalizations of Big Transfer (Kolesnikov et al.
2020). The model of that paper, pre-activation, and its published weights are `core.models.resnet`.

Its numbers are those of big_vision's `bit`, by which results were published: weights are divided by their standard
deviation + 1e-5, where the paper's model adds 1e-10 to the variance, and the root pools what is in the image alone.
"""

import functools
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
from core.recipe.models.options import NumClasses
from core.recipe.models.resnet import BiT as Options
from core.recipe.parse import parse
from core.sharding import constrain


def Model(
  num_classes: int | None = None, *, variant: str | None = None, name: str | None = None, **kw: Any
) -> "ResNet":
  """Returns the ResNet of `variant` ("50x1": depth 50, width 1); `kw` are `Options` that override it.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  options = parse(Options, {"variant": variant, **kw}, "model")
  return make(parse(NumClasses, num_classes, "num_classes"), options, name=name)


def make(num_classes: int | None, options: Options, *, name: str | None = None) -> "ResNet":
  """Returns the ResNet of these options, with a head of `num_classes` outputs; None or 0 for no head."""
  return ResNet(num_classes, options, name=name)


_conv = functools.partial(StdConv, epsilon=1e-5, epsilon_of="deviation")


class ResidualUnit(nn.Module):
  """Three convolutions with GroupNorm, the second with the stride, added to a shortcut; ReLU after the sum.

  The last GroupNorm starts with a scale of 0: at first each unit passes on its input.
  """

  width: int
  strides: tuple[int, int] = (1, 1)
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch rows columns outputs"]:
    conv = functools.partial(_conv, dtype=self.dtype)
    norm = functools.partial(GroupNorm, NUM_GROUPS)
    shortcut = x
    if x.shape[-1] != 4 * self.width or self.strides != (1, 1):
      shortcut = conv(4 * self.width, (1, 1), name="conv_proj", strides=self.strides)(x)
      shortcut = norm(name="gn_proj")(shortcut)
    x = nn.relu(norm(name="gn1")(conv(self.width, (1, 1), name="conv1")(x)))
    x = nn.relu(norm(name="gn2")(conv(self.width, (3, 3), name="conv2", strides=self.strides)(x)))
    x = norm(name="gn3", scale_init=nn.initializers.zeros)(conv(4 * self.width, (1, 1), name="conv3")(x))
    return constrain(nn.relu(shortcut + x), "act_batch")


class ResNet(nn.Module):
  """The root, blocks of residual units, the mean over the image and a linear head. Made by `Model` or `make`.

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
    resnet.check_image(image.shape)
    out: Intermediates = {}
    width = round(64 * options.width)
    x = _conv(width, (7, 7), (2, 2), dtype=options.dtype_mm, name="conv_root")(jnp.asarray(image, options.dtype_mm))
    x = nn.relu(GroupNorm(NUM_GROUPS, name="gn_root")(x))
    x = out["stem"] = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
    for i, units in enumerate(options.units):
      strides = (1, 1) if i == 0 else (2, 2)
      block = resnet.Block(units, width * 2**i, strides, options.dtype_mm, ResidualUnit, "unit{}", name=f"block{i + 1}")
      x = out[f"block{i + 1}"] = block(x)
    return resnet.pool_and_classify(x, out, self.num_classes, options.head_zeroinit)


def load(
  init_params: trees.PyTree, init_file: str, options: Options | None = None, dont_load: Sequence[str] = ()
) -> Any:
  """Returns the weights of `init_file`, fitted to `init_params`; what `dont_load` matches keeps its fresh value.

  Scales and biases may have axes of length 1 besides, as in older files.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: see `core.models.weights.read_file`.
    options: of the model; `init_params` already tells what this family needs of them.
    dont_load: regexes over names, `["head/.*"]` for a new task.

  Raises:
    UserError: an unreadable file, or one of another model (it names the first parameters that differ).
  """
  del options
  init, dont_load = dict(trees.flatten_with_names(init_params)), weights.patterns(dont_load)
  loaded = weights.read_file("bit", init_file)
  loaded = {name: resnet.current_shape(array, init.get(name)) for name, array in loaded.items()}
  return trees.from_names(weights.merge(loaded, init, dont_load, source=init_file))
