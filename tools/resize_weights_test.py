"""Weights of another size: what they give through the model, and what is refused."""

import jax
import numpy as np
import pytest

from core import data_files
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import flexi_vit, patch_resize, vit
from core.testing import compilation
from core.testing.params import random_like, shapes
from tools import resize_weights

TINY = dict(width=32, depth=1, mlp_dim=64, num_heads=2)
WITNESS = data_files.find("core/models/witness/vit_timm.npz")

quick_compilation = compilation.quick()


@pytest.fixture
def image():
  return np.random.default_rng(1).uniform(-1, 1, (2, 48, 48, 3)).astype(np.float32)


def saved(tmp_path, params):
  pretrained.save_params(tmp_path / "old.npz", params)
  return str(tmp_path / "old.npz")


def resized(tmp_path, path, *options):
  assert resize_weights.main([f"--weights={path}", f"--output={tmp_path / 'new.npz'}", *options]) == 0
  return pretrained.load_params(str(tmp_path / "new.npz"))


def test_a_flexivit_becomes_the_plain_vit_that_it_is_at_a_size(tmp_path, image):
  flexible = flexi_vit.Model(7, patch_size=8, posemb_size=7, seqhw=4, pool_type="tok", **TINY)
  params = random_like(shapes(flexible, image.shape))
  options = ("--patch_size=12", "--image_size=48", "--positions=centers")
  plain = vit.Model(7, patch_size=12, pool_type="tok", **TINY)
  found = plain.apply({"params": resized(tmp_path, saved(tmp_path, params), *options)}, image)[0]
  expected = flexible.apply({"params": params}, image)[0]
  np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_larger_patches_of_a_larger_image_give_the_same_logits(tmp_path, image):
  plain = vit.Model(7, patch_size=8, **TINY)
  params = random_like(shapes(plain, image.shape))
  new = resized(tmp_path, saved(tmp_path, params), "--patch_size=16", "--image_size=96")
  matrix = patch_resize.bilinear(8, 16)
  larger = np.einsum("ia,jb,nxaybc->nxiyjc", matrix, matrix, image.reshape(2, 6, 8, 6, 8, 3), optimize=True)
  logits = vit.Model(7, patch_size=16, **TINY).apply({"params": new}, larger.reshape(2, 96, 96, 3))[0]
  np.testing.assert_allclose(logits, plain.apply({"params": params}, image)[0], atol=1e-4)


@pytest.mark.parametrize("size", ["12x12", "5x5", "10x6"])
def test_the_patch_embedding_is_that_of_timm(tmp_path, size):
  with np.load(WITNESS) as file:
    params = {name.removeprefix("params/"): file[name] for name in file if name.startswith("params/")}
    expected = file[f"patch_embedding/{size}"]
  height, width = map(int, size.split("x"))
  options = (f"--patch_size={size}", f"--image_size={4 * height}x{4 * width}", "--positions=centers")
  new = resized(tmp_path, saved(tmp_path, params), *options)
  np.testing.assert_allclose(new["embedding"]["kernel"][..., :4], expected, atol=1e-5)


def test_what_has_the_size_already_is_untouched(tmp_path, capsys):
  params = random_like(shapes(vit.Model(7, patch_size=8, **TINY), (1, 48, 48, 3)))
  new = resized(tmp_path, saved(tmp_path, params), "--patch_size=8", "--image_size=48")
  jax.tree.map(np.testing.assert_array_equal, new, params)
  assert "embedding/kernel: 8x8x3x32 -> 8x8x3x32\npos_embedding: 1x36x32 -> 1x36x32" in capsys.readouterr().out


@pytest.mark.parametrize("weights", ["told", "untold"])
def test_positions_of_4x9_patches_are_not_taken_for_6x6(tmp_path, weights):
  params = random_like(shapes(vit.Model(7, patch_size=8, **TINY), (1, 48, 48, 3)))
  grid = np.stack(np.meshgrid(np.arange(4), np.arange(9), indexing="ij"), -1, dtype=np.float32)  # Rows, columns.
  params["pos_embedding"] = np.tile(grid.reshape(1, 36, 2), 16)
  pretrained.save_params(tmp_path / "old.npz", params, grids={"pos_embedding": (4, 9)} if weights == "told" else None)
  options = ["--patch_size=8", "--image_size=48", *([] if weights == "told" else ["--grid=4x9"])]
  new = resized(tmp_path, tmp_path / "old.npz", *options)["pos_embedding"].reshape(6, 6, 32)
  expected = np.stack(np.meshgrid(np.linspace(0, 3, 6), np.linspace(0, 8, 6), indexing="ij"), -1)
  np.testing.assert_allclose(new[..., :2], expected, atol=1e-6)


@pytest.mark.parametrize(
  "options, words",
  [
    (["--patch_size=8"], "--image_size=... is missing"),
    (["--patch_size=0", "--image_size=32"], "--patch_size=0 must be a number of pixels"),
    (["--patch_size=12", "--image_size=32"], "--image_size=32 is no multiple of --patch_size=12"),
    (["--patch_size=8", "--image_size=32x48", "--grid=4x4"], "36 positions are not those of a grid of 4x4"),
    (["--patch_size=8", "--image_size=32x72"], "36 positions may be 4x9 or 6x6 patches, and the file does not tell"),
    (["--patch_size=8", "--image_size=32", "--positions=center"], "--positions must be one of corners, centers"),
    (["--patch_size=8", "--image_size=32", "--output=new.pt"], "must end in .npz"),
    (
      ["--patch_size=8", "--image_size=32", "--config.lr=1"],
      "config.lr is unknown: this program changes no config",
    ),
  ],
)
def test_a_mistake_is_refused(tmp_path, options, words):
  path = saved(tmp_path, random_like(shapes(vit.Model(7, patch_size=8, **TINY), (1, 48, 48, 3))))
  with pytest.raises(UserError, match=words):
    resize_weights.main([f"--weights={path}", f"--output={tmp_path / 'new.npz'}", *options])
  assert not (tmp_path / "new.npz").exists()


def test_nothing_is_overwritten_and_other_weights_are_refused(tmp_path):
  options = ["--patch_size=8", "--image_size=48", f"--output={tmp_path / 'new.npz'}"]
  other = saved(tmp_path, {"head": {"kernel": np.ones((2, 3), np.float32)}})
  with pytest.raises(UserError, match="no weights of a ViT"):
    resize_weights.main([f"--weights={other}", *options])
  (tmp_path / "new.npz").write_bytes(b"mine")
  with pytest.raises(UserError, match="is there already"):
    resize_weights.main([f"--weights={other}", *options])
