import jax
import numpy as np
import pytest
import scipy.ndimage

from core.checkpoint import pretrained
from core.errors import UserError
from core.models import flexi_vit, grids, mixer, one_tower, patch_resize, two_towers, vit
from core.testing.params import random_like, shapes

SIZES = dict(width=8, depth=1, mlp_dim=8, num_heads=2)
VIT = dict(patch_size=(1, 1), pool_type="gap", **SIZES)
MIXER = dict(patch_size=(1, 1), num_blocks=1, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8)


@pytest.fixture(autouse=True)
def nothing_made(monkeypatch):
  """Grids of this process's other tests are none of these tests' models."""
  monkeypatch.setattr(grids, "_MADE", {})
  shapes.cache_clear()


def coordinates(rows, columns, height, width):
  """[1, rows * columns, 8]: where each patch of a grid lies in another of height x width, row and column."""
  grid = np.meshgrid(np.linspace(0, height - 1, rows), np.linspace(0, width - 1, columns), indexing="ij")
  return np.concatenate([np.stack(grid, -1).reshape(1, -1, 2), np.zeros((1, rows * columns, 6))], -1, dtype=np.float32)


def made(model, rows, columns, *, positions=None):
  params = random_like(shapes(model, (1, rows, columns, 3)))
  return params if positions is None else {**params, "pos_embedding": positions}


def of_another_process(path, params, grid=None):
  """A file whose grid this process does not know from elsewhere."""
  pretrained.save_params(path, params, grids=grid and {"pos_embedding": grid})
  grids._MADE.clear()
  shapes.cache_clear()
  return str(path)


@pytest.mark.parametrize("old, new", [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((3, 3), (1, 1)), ((2, 5), (6, 3))])
def test_position_embeddings_are_resized_as_scipy_zooms(old, new):
  embedding = np.random.default_rng(0).normal(size=(1, old[0] * old[1], 5)).astype(np.float32)
  resized = patch_resize.resize_grid_by_corners(embedding, old, new)
  factors = (new[0] / old[0], new[1] / old[1], 1)
  zoomed = scipy.ndimage.zoom(embedding.reshape(*old, 5), factors, order=1)
  np.testing.assert_allclose(resized, zoomed.reshape(1, -1, 5), atol=1e-5)


OBLONG = [((8, 8), (4, 16)), ((24, 24), (18, 32)), ((4, 16), (8, 8)), ((4, 9), (9, 4)), ((2, 3), (4, 7))]


@pytest.mark.parametrize("old, new", [*OBLONG, ((8, 8), (8, 32)), ((4, 4), (7, 7))])
def test_positions_of_a_file_that_tells_its_grid_go_to_their_places(tmp_path, old, new):
  model = vit.Model(2, **VIT)
  path = of_another_process(tmp_path / "old.npz", made(model, *old, positions=coordinates(*old, *old)), old)
  loaded = vit.load(shapes(model, (1, *new, 3)), path)
  np.testing.assert_allclose(loaded["pos_embedding"], coordinates(*new, *old), atol=1e-5)


@pytest.mark.parametrize("new", [(8, 8), (8, 32), (5, 7), (1, 9)])
def test_a_file_that_tells_nothing_is_of_a_square_grid_if_its_number_is_not_the_models(tmp_path, new):
  model = vit.Model(2, **VIT)
  path = of_another_process(tmp_path / "old.npz", made(model, 4, 4, positions=coordinates(4, 4, 4, 4)))
  loaded = vit.load(shapes(model, (1, *new, 3)), path)
  np.testing.assert_allclose(loaded["pos_embedding"], coordinates(*new, 4, 4), atol=1e-5)


@pytest.mark.parametrize("old, new", [((8, 8), (4, 16)), ((24, 24), (18, 32)), ((4, 9), (3, 12)), ((4, 16), (4, 16))])
def test_a_file_that_tells_nothing_and_has_the_models_number_is_refused_with_both_grids(tmp_path, old, new):
  model = vit.Model(2, **VIT)
  path = of_another_process(tmp_path / "old.npz", made(model, *old))
  like = shapes(model, (1, *new, 3))
  square = "x".join([str(grids.square(old[0] * old[1])[0])] * 2)
  with pytest.raises(UserError, match=f"may be {new[0]}x{new[1]} or {square} patches, and the file does not tell"):
    vit.load(like, path)


def test_models_of_two_grids_of_the_same_number_want_theirs_named(tmp_path):
  model = vit.Model(2, **VIT)
  path = of_another_process(tmp_path / "old.npz", made(model, 6, 6, positions=coordinates(6, 6, 6, 6)), (6, 6))
  shapes(model, (1, 9, 4, 3)), shapes(model, (1, 4, 9, 3))
  with pytest.raises(UserError, match="the model's 36 positions may be 4x9 or 9x4"):
    vit.load(shapes(model, (1, 4, 9, 3)), path)
  loaded = vit.load(shapes(model, (1, 4, 9, 3)), path, grid=(4, 9))
  np.testing.assert_allclose(loaded["pos_embedding"], coordinates(4, 9, 6, 6), atol=1e-5)


@pytest.mark.parametrize(
  "positions, first, told, model, expected",
  [
    (17, (0, 1), (), (4, 4), (1, (4, 4))),  # A class token with a position.
    (16, (0, 1), (), (4, 4), (0, (4, 4))),
    (16, (0, 4), (), None, (0, (4, 4))),  # Four registers and no class token.
    (17, (0, 1), [(4, 4)], (5, 5), (1, (4, 4))),
    (26, (0, 10), (), (5, 5), (10, (4, 4))),  # A class token and nine registers: not 5x5 and a class token.
    (10, (0,), (), (2, 5), (0, (2, 5))),
    (10, (0, 1), [(2, 5)], (4, 4), (0, (2, 5))),  # Not 3x3 and a class token.
    (10, (0, 1), (), None, (1, (3, 3))),
  ],
)
def test_which_positions_are_the_patches_is_told_by_the_model(positions, first, told, model, expected):
  assert grids.of_file(positions, first=first, told=told, model=model) == expected


@pytest.mark.parametrize(
  "positions, first, told, model, line",
  [
    (
      10,
      (0,),
      (),
      (4, 4),
      "10 positions are no square grid, and the file does not tell theirs; the model's grid is 4x4",
    ),
    (10, (0, 1), (), (2, 5), "10 positions may be 2x5 or 3x3 patches, and the file does not tell"),
    (9, (0, 5), (), None, "9 positions may be 2x2 or 3x3 patches"),
    (17, (0, 1), [(3, 5), (2, 2)], (4, 4), "17 positions are not those of a grid of 3x5 or 2x2, which is what is told"),
  ],
)
def test_positions_that_may_be_anybodys_are_refused(positions, first, told, model, line):
  with pytest.raises(UserError, match=line):
    grids.of_file(positions, first=first, told=told, model=model)


def test_positions_of_tokens_before_the_patches_are_added_to_them():
  positions = np.arange(7.0).reshape(1, 7, 1) * np.ones(2)
  named = {"pos_embedding": positions, "cls": np.full((1, 1, 2), 10), "registers": np.full((1, 2, 2), 20)}
  split, grid = grids.split(named, first=(0, 3))
  assert grid == (2, 2)
  np.testing.assert_array_equal(split["cls"][0, :, 0], [10])
  np.testing.assert_array_equal(split["registers"][0, :, 0], [21, 22])
  np.testing.assert_array_equal(split["pos_embedding"][0, :, 0], [3, 4, 5, 6])


def test_a_file_of_towers_tells_the_grid_of_its_images(tmp_path):
  model = two_towers.Model(image=VIT, text=dict(vocab_size=5, **SIZES), out_dim=8)
  params = random_like(shapes_of_towers(model, (4, 9)))
  params["img"]["pos_embedding"] = coordinates(4, 9, 4, 9)
  noted = grids.noted(params)
  assert noted == {"img/pos_embedding": [4, 9]}  # Not the 36 tokens of a text.
  pretrained.save_params(tmp_path / "towers.npz", params, grids=noted)
  grids._MADE.clear()
  loaded = two_towers.load(shapes_of_towers(model, (6, 6)), str(tmp_path / "towers.npz"), model.options)
  np.testing.assert_allclose(loaded["img"]["pos_embedding"], coordinates(6, 6, 4, 9), atol=1e-5)
  np.testing.assert_array_equal(loaded["txt"]["pos_embedding"], params["txt"]["pos_embedding"])
  clippo = one_tower.Model(image=VIT, out_dim=8)
  like = random_like(shapes_of_towers(clippo, (6, 6), text=False))
  clippo_params = one_tower.load(like, {"image": f"{tmp_path}/towers.npz:img"}, clippo.options)
  np.testing.assert_allclose(clippo_params["img"]["pos_embedding"], coordinates(6, 6, 4, 9), atol=1e-5)


def shapes_of_towers(model, grid, text=True):
  grids._MADE.clear()
  inputs = (np.zeros((1, *grid, 3), np.float32), *([np.zeros((1, 36), np.int32)] if text else []))
  return jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs))["params"]


def test_a_flexivit_has_the_grid_of_its_options(tmp_path):
  model = flexi_vit.Model(2, **VIT | dict(posemb_size=(4, 9), seqhw=6))
  params = made(model, 6, 6, positions=coordinates(4, 9, 4, 9))
  assert grids.noted(params) == {"pos_embedding": [4, 9]}
  path = of_another_process(tmp_path / "old.npz", params, (4, 9))
  square = flexi_vit.Model(2, **VIT | dict(posemb_size=(6, 6), seqhw=6))
  loaded = flexi_vit.load(shapes(square, (1, 6, 6, 3)), path, square.options)["pos_embedding"]
  np.testing.assert_allclose(loaded, patch_resize.resize_grid_by_corners(params["pos_embedding"], (4, 9), (6, 6)))


def test_a_mixer_is_bound_to_its_grid_not_to_its_number_of_patches(tmp_path):
  model = mixer.Model(2, **MIXER)
  params = made(model, 4, 9)
  noted = grids.noted(params)
  assert noted == {grids.MIXED: [4, 9]}
  pretrained.save_params(tmp_path / "old.npz", params, grids=noted)
  jax.tree.map(np.testing.assert_array_equal, mixer.load(params, str(tmp_path / "old.npz")), params)
  grids._MADE.clear()
  shapes.cache_clear()
  with pytest.raises(UserError, match="trained with 4x9 patches an image, but this model has 6x6"):
    mixer.load(shapes(model, (1, 6, 6, 3)), str(tmp_path / "old.npz"))
  path = of_another_process(tmp_path / "untold.npz", params)
  with pytest.raises(UserError, match="36 positions may be 6x6 or 9x4 patches"):
    mixer.load(shapes(model, (1, 9, 4, 3)), path)


def test_a_damaged_note_is_one_line(tmp_path):
  params = {"pos_embedding": np.ones((1, 4, 2))}
  pretrained.save_params(tmp_path / "old.npz", params, grids={"pos_embedding": "square"})
  with pytest.raises(UserError, match="its note of grids is damaged"):
    vit.load(params, str(tmp_path / "old.npz"))


@pytest.mark.parametrize(
  "told, grid, yes",
  [
    (None, (6, 6), True),
    (None, (4, 9), False),
    ((4, 9), (4, 9), True),
    ((4, 9), (6, 6), False),
    ((6, 6), (4, 9), False),
  ],
)
def test_a_file_of_the_models_own_shapes_may_be_of_another_grid(told, grid, yes):
  params = made(vit.Model(2, **VIT), *grid)
  assert grids.are_those_of({"pos_embedding": told} if told else {}, params) is yes
