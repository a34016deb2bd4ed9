"""Resized patch and position embeddings, against timm, NumPy's pinv of the whole matrix, and what the paper proves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import data_files
from core.models import patch_resize

WITNESS = data_files.find("core/models/witness/vit_timm.npz")
GROWN = [((8, 8), (16, 12)), ((5, 7), (6, 7)), ((16, 16), (24, 24)), ((4, 4), (13, 9))]
SHRUNK = [((8, 8), (5, 5)), ((16, 16), (10, 8)), ((12, 12), (12, 3))]


def kernel_of(size):
  return np.random.default_rng(0).normal(size=(*size, 3, 5))


@pytest.mark.parametrize("size", ["12x12", "5x5", "10x6"])
def test_patch_embeddings_are_resized_as_in_timm(size):
  with np.load(WITNESS) as file:
    kernel, expected = file["params/embedding/kernel"][..., :4], file[f"patch_embedding/{size}"]
  resized = patch_resize.resample_patch_embedding(kernel, expected.shape[:2])
  assert resized.dtype == np.float32
  np.testing.assert_allclose(resized, expected, atol=1e-5)


@pytest.mark.parametrize("old, new", GROWN)
def test_a_larger_patch_has_exactly_the_token_of_the_patch(old, new):
  """<resized kernel, resized patch> = <kernel, patch>, in float64; the patch is resized by JAX, an image's resizing."""
  kernel, patch = kernel_of(old), np.random.default_rng(1).normal(size=(*old, 3))
  with jax.enable_x64(True):
    larger = np.asarray(jax.image.resize(patch, (*new, 3), "bilinear"))
  tokens = np.einsum("hwc,hwck->k", larger, patch_resize.resample_patch_embedding(kernel, new))
  np.testing.assert_allclose(tokens, np.einsum("hwc,hwck->k", patch, kernel), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("old, new", [*GROWN, *SHRUNK])
def test_the_matrix_is_numpys_pseudo_inverse_of_the_whole_resizing(old, new):
  """Of the matrix that resizes a patch as one vector, made by resizing every unit vector, not of rows and columns."""
  units = np.eye(np.prod(old)).reshape(-1, *old)
  with jax.enable_x64(True):
    resized = jax.image.resize(units, (len(units), *new), "bilinear", antialias=False)
  whole = np.asarray(resized).reshape(len(units), -1).T
  kernel = kernel_of(old)
  expected = (np.linalg.pinv(whole.T) @ kernel.reshape(len(units), -1)).reshape(*new, 3, 5)
  np.testing.assert_allclose(patch_resize.resample_patch_embedding(kernel, new), expected, atol=1e-9)


def test_smaller_patches_get_the_closest_kernel_that_there_is():
  """Least squares: no other kernel is nearer to <w, x> over patches of independent pixels of unit variance."""
  old, new = 9, 4
  kernel = kernel_of((old, 1))[:, 0, 0, 0]
  error = lambda w: np.sum((patch_resize.bilinear(old, new).T @ w - kernel) ** 2)
  best = patch_resize.pseudo_inverse(old, new) @ kernel
  for seed in range(20):
    assert error(best) <= error(best + 0.1 * np.random.default_rng(seed).normal(size=new))


@pytest.mark.parametrize("old, new", [*GROWN, *SHRUNK])
def test_under_jax_it_is_the_same_and_has_a_gradient(old, new):
  kernel = kernel_of(old)
  resize = jax.jit(lambda kernel: patch_resize.resample_patch_embedding(kernel, new))
  expected = patch_resize.resample_patch_embedding(kernel, new)
  np.testing.assert_allclose(resize(jnp.asarray(kernel, jnp.float32)), expected, atol=1e-4 * np.abs(expected).max())
  # The map is linear: its gradient, paired with a kernel, is the pairing of what it gives.
  cotangent = np.random.default_rng(2).normal(size=expected.shape)
  gradient = jax.grad(lambda k: jnp.sum(resize(k) * cotangent))(jnp.zeros(kernel.shape, jnp.float32))
  np.testing.assert_allclose(np.sum(gradient * kernel), np.sum(expected * cotangent), rtol=1e-3)


def test_the_pseudo_inverse_is_no_part_of_the_program():
  text = jax.jit(lambda k: patch_resize.resample_patch_embedding(k, (5, 5))).lower(jnp.zeros((8, 8, 3, 4))).as_text()
  assert text.count("dot_general") == 2
  assert "svd" not in text
  assert "custom_call" not in text


def test_a_kernel_of_the_size_is_untouched():
  kernel = kernel_of((8, 8))
  assert patch_resize.resample_patch_embedding(kernel, (8, 8)) is kernel
  assert patch_resize.resize_grid(kernel[:1, :, 0], (2, 4), (2, 4)).shape == (1, 8, 5)


@pytest.mark.parametrize("old, new", [((7, 7), (16, 16)), ((7, 7), (5, 5)), ((7, 7), (3, 4)), ((3, 5), (6, 4))])
def test_grids_are_resized_as_jax_resizes_images(old, new):
  """With its antialiasing, as the published FlexiViT calls it."""
  positions = np.random.default_rng(0).normal(size=(1, old[0] * old[1], 6)).astype(np.float32)
  image = jax.image.resize(positions.reshape(1, *old, 6), (1, *new, 6), "linear")
  for resized in (
    patch_resize.resize_grid(positions, old, new),
    patch_resize.resize_grid(jnp.asarray(positions), old, new),
  ):
    np.testing.assert_allclose(resized, np.asarray(image).reshape(1, -1, 6), atol=1e-5)


def test_a_kernel_resized_as_an_image_is_not_what_the_pseudo_inverse_gives():
  kernel, patch = kernel_of((8, 8)), np.random.default_rng(1).normal(size=(8, 8, 3))
  larger = patch_resize.resize_patch_embedding(patch[..., None], (16, 16))[..., 0]
  plain = np.einsum("hwc,hwck->k", larger, patch_resize.resize_patch_embedding(kernel, (16, 16)))
  assert np.abs(plain - np.einsum("hwc,hwck->k", patch, kernel)).max() > 5
