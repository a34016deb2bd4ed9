"""Patch embeddings and position embeddings of another size: what FlexiViT rests on (Beyer et al. 2023).

Resizing a patch bilinearly is a linear map, a matrix B a side. A patch embedding w' that is to give the resized patch
the token of the patch, <w', Bx> = <w, x>, is therefore w' = pinv(B^T) w (section 3.4): exact where patches grow, and
where they shrink the closest in expectation over patches of independent pixels. Bilinear resizing treats rows and
columns apart, so its matrix is a Kronecker product, and the pseudo-inverse of that one the product of the two small
pseudo-inverses: those are computed here, once a size, on the host.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def bilinear(old: int, new: int) -> Float[np.ndarray, "new old"]:
  """Returns the matrix that resizes one side from `old` to `new` pixels: half-pixel centers, no antialiasing."""
  centers = (np.arange(new) + 0.5) * old / new - 0.5
  return interpolation(np.clip(centers, 0, old - 1), old)


def antialiased(old: int, new: int) -> Float[np.ndarray, "new old"]:
  """Returns the matrix of `bilinear`, whose triangle is as wide as a pixel of the smaller side: `jax.image.resize`'s.

  Where it shrinks, each new pixel is a weighted mean of all old ones that it covers; where it grows it is `bilinear`.
  """
  if new >= old:
    return bilinear(old, new)
  centers = (np.arange(new) + 0.5) * old / new - 0.5
  weights = np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(old)) * new / old)
  return weights / weights.sum(axis=1, keepdims=True)


def interpolation(positions: Float[np.ndarray, "new"], size: int) -> Float[np.ndarray, "new size"]:
  """Returns the matrix that samples a signal of `size` values linearly at `positions` in [0, size - 1]."""
  return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size)))


@functools.cache
def pseudo_inverse(old: int, new: int) -> Float[np.ndarray, "new old"]:
  """Returns pinv(B^T) of the B that resizes one side of a patch from `old` to `new` pixels, in float64."""
  return np.linalg.pinv(bilinear(old, new).T)


def resample_patch_embedding(
  kernel: Float[Array, "old_h old_w channels width"], size: tuple[int, int]
) -> Float[Array, "new_h new_w channels width"]:
  """Resizes a patch embedding so that resized patches give the same tokens ("PI-resize").

  Of a JAX array two small products are traced, with constants made before: the pseudo-inverse is no part of the step.
  """
  if kernel.shape[:2] == tuple(size):
    return kernel
  rows, columns = (pseudo_inverse(old, new) for old, new in zip(kernel.shape, size))
  return _both_sides(rows, columns, kernel)


def resize_patch_embedding(
  kernel: Float[Array, "old_h old_w channels width"], size: tuple[int, int]
) -> Float[Array, "new_h new_w channels width"]:
  """Resizes a patch embedding as if it were an image, which changes its tokens: to compare with."""
  rows, columns = (bilinear(old, new) for old, new in zip(kernel.shape, size))
  return _both_sides(rows, columns, kernel)


def resize_grid(
  positions: Float[Array, "1 tokens dim"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "1 new_tokens dim"]:
  """Resizes position embeddings of a grid `old` = (rows, columns) to `new`, bilinearly by half-pixel centers.

  Cells of both grids stand for the same parts of an image, whatever their size, which is FlexiViT's way. A grid that
  shrinks is antialiased, for the published models were trained and scored so: by `jax.image.resize`, which does it
  unless told otherwise. Fine-tuned ViTs keep the corners instead: `resize_grid_by_corners`.
  """
  if tuple(old) == tuple(new):
    return positions
  dim = positions.shape[-1]
  rows, columns = (antialiased(*sides) for sides in zip(old, new))
  return _both_sides(rows, columns, positions.reshape(*old, 1, dim)).reshape(1, new[0] * new[1], dim)


def resize_grid_by_corners(
  positions: Float[np.ndarray, "1 tokens dim"], old: tuple[int, int], new: tuple[int, int]
) -> Float[np.ndarray, "1 new_tokens dim"]:
  """Resizes position embeddings of a grid `old` = (rows, columns) to `new`, linearly, with the corners kept.

  So published ViTs were fine-tuned at another resolution (Dosovitskiy et al. 2021, section 3.2).
  """
  if tuple(old) == tuple(new):
    return positions
  rows, columns = (interpolation(np.linspace(0, a - 1, b), a) for a, b in zip(old, new))
  grid = np.asarray(positions, np.float32).reshape(*old, -1)
  grid = np.einsum("ir,jc,rcd->ijd", rows, columns, grid, optimize=True)
  return grid.reshape(1, new[0] * new[1], -1).astype(np.float32)


def _both_sides(
  rows: Float[np.ndarray, "new_h old_h"], columns: Float[np.ndarray, "new_w old_w"], x: Any
) -> Float[Array, "new_h new_w channels width"]:
  """Multiplies both sides of `x`; float64 stays float64, all else becomes float32."""
  if isinstance(x, jax.Array):
    # Not in the accelerator's half precision: the matrices have large entries of both signs.
    product = functools.partial(jnp.einsum, precision="highest")
    rows, columns = jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)
    return product("jc,icdk->ijdk", columns, product("ir,rcdk->icdk", rows, x))
  resized = np.einsum("ir,jc,rcdk->ijdk", rows, columns, np.asarray(x, np.float64), optimize=True)
  return resized.astype(np.float64 if x.dtype == np.float64 else np.float32)
