"""FlexiViT: one ViT for all patch sizes (Beyer et al. 2023, "FlexiViT: One model for all patch sizes").

The patch embedding and the position embedding are kept at sizes of their own, and resized to those in use in the
forward pass (section 3.3): the former by the pseudo-inverse of bilinear resizing, the latter bilinearly, antialiased
where the grid shrinks (`core.models.patch_resize.resize_grid`). So the parameters are the same, in names and shapes,
for every size. What is in use is said as the number of patches along each side of an image, `seqhw`: 240 px are 5, 6,
8, 10, 12, 15, 16, 20, 24 and 30 patches of 48, 40, 30, 24, 20, 16, 15, 12, 10 and 8 px.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from core import trees
from core.errors import UserError
from core.models import grids, patch_resize, vit
from core.recipe.models.options import NumClasses
from core.recipe.models.vit import FlexiViT as Options
from core.recipe.parse import parse


def Model(
  num_classes: int | None = None, *, variant: str | None = None, name: str | None = None, **kw: Any
) -> "FlexiViT":
  """Returns the FlexiViT of `variant` ("B": without a patch size); `kw` are `Options` that override it.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  options = parse(Options, {"variant": variant, **kw}, "model")
  return make(parse(NumClasses, num_classes, "num_classes"), options, name=name)


def make(num_classes: int | None, options: Options, *, name: str | None = None) -> "FlexiViT":
  """Returns the FlexiViT of these options, with a head of `num_classes` outputs; None or 0 for no head."""
  return FlexiViT(num_classes, options, name=name)


def patch_size(image_size: tuple[int, int], seqhw: int | tuple[int, int]) -> tuple[int, int]:
  """Returns the pixels (height, width) of a patch where an image of that size has `seqhw` patches along its sides.

  Raises:
    UserError: they do not divide the image.
  """
  height, width = image_size
  rows, columns = (seqhw, seqhw) if isinstance(seqhw, int) else seqhw
  if height % rows or width % columns:
    fit = [str(n) for n in range(1, min(height, width) + 1) if not height % n and not width % n]
    raise UserError(
      f"model: {rows}x{columns} patches (seqhw) do not divide an image of {height}x{width} px; {', '.join(fit)} do"
    )
  return height // rows, width // columns


class FlexiViT(vit.ViT):
  """A ViT that is told its sequence length. Made by `Model` or `make`."""

  options: Options = Options()

  def _embed_patches(
    self, image: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch rows columns width"]:
    options = self.options
    if options.seqhw is None or len(image.shape) != 4:
      self._check_image(image.shape)
    size = options.patch_size if options.seqhw is None else patch_size(image.shape[1:3], options.seqhw)
    return _PatchEmbedding(options.width, options.patch_size, options.dtype_mm, name="embedding")(image, size)

  def _position_embedding(self, rows: int, columns: int) -> Float[Array, "1 tokens width"]:
    options = self.options
    if options.posemb == "sincos2d":
      return super()._position_embedding(rows, columns)
    init = nn.initializers.normal(1 / math.sqrt(options.width))
    if self.is_initializing():
      grids.note(*options.posemb_size)
    kept = self.param("pos_embedding", init, (1, math.prod(options.posemb_size), options.width))
    return patch_resize.resize_grid(kept, options.posemb_size, (rows, columns))


class _PatchEmbedding(nn.Module):
  """The convolution of a ViT's patches, whose kernel [*kept, channels, width] is resized to the patches in use."""

  width: int
  kept: tuple[int, int]
  dtype: Any

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width channels"], size: tuple[int, int]
  ) -> Float[Array, "batch rows columns width"]:
    kernel = self.param("kernel", nn.linear.default_kernel_init, (*self.kept, image.shape[-1], self.width))
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    kernel = patch_resize.resample_patch_embedding(kernel, size)
    # A convolution whose stride is its size: a product over the pixels of each patch.
    conv = nn.Conv(self.width, size, strides=size, padding="VALID", dtype=self.dtype, parent=None)
    return conv.apply({"params": {"kernel": kernel, "bias": bias}}, jnp.asarray(image, self.dtype))


def load(
  init_params: trees.PyTree, init_file: str, options: Options | None = None, dont_load: Sequence[str] = ()
) -> Any:
  """Returns the weights of a FlexiViT or of a plain ViT, at the sizes that this model keeps; see `vit.load`.

  A model that keeps a plain ViT's own sizes is that ViT there. Otherwise its patch embedding is resized by the
  pseudo-inverse, so that enlarged patches keep their tokens, and its position embedding with its corners kept, as a
  plain ViT's is: the published students began so from their teachers, whatever they do with it afterwards. Enlarged and
  shrunk again it is another one, as shrinking looks at some of the pixels only.

  Raises:
    UserError: an unreadable file, one of another model, or one whose patch embedding is larger than this model keeps.
  """
  return vit.load(
    init_params,
    init_file,
    options,
    dont_load,
    grid=options.posemb_size if isinstance(options, Options) else None,
    resize_patches=_enlarge_patches,
  )


def to_vit(
  params: Mapping[str, Any], posemb_size: tuple[int, int], size: tuple[int, int], seqhw: tuple[int, int]
) -> dict[str, Any]:
  """Returns the parameters of the plain ViT that a FlexiViT is for patches of `size` pixels, `seqhw` along the sides.

  Args:
    params: of a FlexiViT, as NumPy arrays; they are not changed.
    posemb_size: the grid at which they hold the position embedding.
    size: pixels (height, width) of a patch.
    seqhw: (rows, columns).
  """
  kernel = patch_resize.resample_patch_embedding(params["embedding"]["kernel"], size)
  resized = {**params, "embedding": {**params["embedding"], "kernel": kernel}}
  if "pos_embedding" in params:
    resized["pos_embedding"] = patch_resize.resize_grid(params["pos_embedding"], posemb_size, seqhw)
  return resized


def _enlarge_patches(
  kernel: Float[np.ndarray, "old_h old_w channels width"], size: tuple[int, int]
) -> Float[np.ndarray, "new_h new_w channels width"]:
  if kernel.shape[0] > size[0] or kernel.shape[1] > size[1]:
    theirs = "x".join(map(str, kernel.shape[:2]))
    raise UserError(
      f"embedding/kernel: the file's patches are {theirs} px, and kept at {size[0]}x{size[1]} they would lose detail; "
      f"set model.patch_size={tuple(kernel.shape[:2])}"
    )
  return patch_resize.resample_patch_embedding(kernel, size)
