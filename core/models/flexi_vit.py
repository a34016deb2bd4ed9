"""FlexiViT: one ViT for all patch sizes (Beyer et al. 2023, "FlexiViT: One model for all patch sizes").

The patch embedding and the position embedding are kept at sizes of their own, and resized to those in use in the
forward pass (section 3.3): the former by the pseudo-inverse of bilinear resizing, the latter bilinearly. So the
parameters are the same, in names and shapes, for every size. What is in use is said as the number of patches along each
side of an image, `seqhw`: 240 px are 5, 6, 8, 10, 12, 15, 16, 20, 24 and 30 patches of 48, 40, 30, 24, 20, 16, 15, 12,
10 and 8 px.
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
from core.models import options, patch_resize, vit

VARIANTS = vit.VARIANTS
_OWN_OPTIONS = ("posemb_size", "seqhw")


def Model(num_classes: int | None = None, *, variant: str | None = None, **kw: Any) -> "FlexiViT":
  """The FlexiViT of `variant` ("B": without a patch size); options in `kw`, those of a ViT and its own.

  Raises:
    UserError: an unknown variant, option or value of an option, or sizes that do not fit each other.
  """
  own = {name: options.pair(kw[name]) for name in _OWN_OPTIONS if kw.get(name) is not None}
  for name, size in own.items():
    if len(size) != 2 or not all(map(options.is_positive, size)):
      raise UserError(f"model: {name} must be a number of patches along each side, or two, got {kw[name]!r}")
  return vit.make(FlexiViT, num_classes, variant=variant, **(kw | own))


def patch_size(image_size: Sequence[int], seqhw: int | Sequence[int]) -> tuple[int, int]:
  """The pixels (height, width) of a patch where an image of that size has `seqhw` patches along its sides.

  Raises:
    UserError: they do not divide the image.
  """
  (height, width), (rows, columns) = image_size, options.pair(seqhw)
  if height % rows or width % columns:
    fit = [str(n) for n in range(1, min(height, width) + 1) if not height % n and not width % n]
    raise UserError(
      f"model: {rows}x{columns} patches (seqhw) do not divide an image of {height}x{width} px; {', '.join(fit)} do"
    )
  return height // rows, width // columns


class FlexiViT(vit.ViT):
  """A ViT that is told its sequence length. Made by `Model`, which checks the options.

  Attributes:
    patch_size: pixels (height, width) at which the patch embedding is kept.
    posemb_size: rows and columns of the grid at which the position embedding is kept.
    seqhw: patches along the sides of an image (rows, columns); None for as many as patches of `patch_size` give.
  """

  patch_size: tuple[int, int] = (32, 32)
  posemb_size: tuple[int, int] = (7, 7)
  seqhw: tuple[int, int] | None = None

  def _embed_patches(
    self, image: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch rows columns width"]:
    if self.seqhw is None or len(image.shape) != 4:
      self._check_image(image.shape)
    size = self.patch_size if self.seqhw is None else patch_size(image.shape[1:3], self.seqhw)
    return _PatchEmbedding(self.width, self.patch_size, self.dtype_mm, name="embedding")(image, size)

  def _position_embedding(self, rows: int, columns: int) -> Float[Array, "1 tokens width"]:
    if self.posemb == "sincos2d":
      return super()._position_embedding(rows, columns)
    init = nn.initializers.normal(1 / math.sqrt(self.width))
    kept = self.param("pos_embedding", init, (1, math.prod(self.posemb_size), self.width))
    return patch_resize.resize_grid(kept, self.posemb_size, (rows, columns))


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
  init_params: trees.PyTree, init_file: str, model_cfg: Mapping[str, Any] | None = None, dont_load: Sequence[str] = ()
) -> Any:
  """The weights of a FlexiViT or of a plain ViT, at the sizes that this model keeps; see `core.models.vit.load`.

  A model that keeps a plain ViT's own sizes is that ViT there. Otherwise its patch embedding is resized by the
  pseudo-inverse, so that enlarged patches keep their tokens, and its position embedding bilinearly. Enlarged and shrunk
  again it is another one, as shrinking looks at some of the pixels only.

  Raises:
    UserError: an unreadable file, one of another model, or one whose patch embedding is larger than this model keeps.
  """
  plain = None if model_cfg is None else {k: v for k, v in dict(model_cfg).items() if k not in _OWN_OPTIONS}
  return vit.load(
    init_params, init_file, plain, dont_load, resize_positions=_resize_positions, resize_patches=_enlarge_patches
  )


def to_vit(
  params: Mapping[str, Any], posemb_size: tuple[int, int], size: tuple[int, int], seqhw: tuple[int, int]
) -> dict[str, Any]:
  """The parameters of the plain ViT that a FlexiViT is for patches of `size` pixels, `seqhw` of them along the sides.

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


def _resize_positions(old: Float[np.ndarray, "1 old_tokens dim"], new: Any) -> Float[np.ndarray, "1 new_tokens dim"]:
  if old.shape[1] == new.shape[1]:
    return old
  sides = [math.isqrt(each.shape[1]) for each in (old, new)]
  for side, each, where in zip(sides, (old, new), ("the file", "the model")):
    if side**2 != each.shape[1]:
      raise UserError(f"pos_embedding: {each.shape[1]} positions in {where}: only square grids can be resized")
  return patch_resize.resize_grid(old, *((side, side) for side in sides))
