"""FlexiViT at its sizes, against the plain ViT that it is at each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from core import trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import flexi_vit, patch_resize, registry, vit
from core.testing import compilation
from core.testing.params import random_like, shapes, with_options

TINY = dict(width=32, depth=2, mlp_dim=64, num_heads=2)
KEPT = dict(patch_size=8, posemb_size=7)

quick_compilation = compilation.quick()


@pytest.fixture
def image():
  return np.random.default_rng(1).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
  def save(params):
    path = str(tmp_path / "weights.npz")
    pretrained.save_params(path, params)
    return path

  return save


def enlarged(image, patch, size):
  """Each patch of an image resized by itself, from `patch` to `size` pixels."""
  grid, matrix = image.shape[1] // patch, patch_resize.bilinear(patch, size)
  patches = image.reshape(len(image), grid, patch, grid, patch, 3)
  larger = np.einsum("ia,jb,nxaybc->nxiyjc", matrix, matrix, patches, optimize=True)
  return larger.reshape(len(image), grid * size, grid * size, 3)


@pytest.mark.parametrize("seqhw", [None, 3, 7])
def test_parameters_have_the_published_names_and_shapes_at_every_size(seqhw):
  model = flexi_vit.Model(7, variant="mu", seqhw=seqhw, **KEPT)
  named = {name: leaf.shape for name, leaf in trees.flatten_with_names(shapes(model, (1, 168, 168, 3)))}
  assert named["embedding/kernel"] == (8, 8, 3, 32)
  assert named["embedding/bias"] == (32,)
  assert named["pos_embedding"] == (1, 49, 32)
  plain = dict(trees.flatten_with_names(shapes(vit.Model(7, variant="mu/8"), (1, 56, 56, 3))))
  assert named == {name: leaf.shape for name, leaf in plain.items()}


def test_it_keeps_patches_of_32_px_and_7_x_7_positions_unless_told_otherwise():
  named = dict(trees.flatten_with_names(shapes(flexi_vit.Model(variant="mu", seqhw=2))))
  assert (named["embedding/kernel"].shape, named["pos_embedding"].shape) == ((32, 32, 3, 32), (1, 49, 32))
  assert registry.get("proj.flexi.vit") is registry.get("flexi_vit") is flexi_vit


@pytest.mark.parametrize("pool_type", ["gap", "tok", "map"])
@pytest.mark.parametrize("seqhw", [2, 3, (6, 4), 8])
def test_at_each_size_it_is_the_plain_vit_of_its_resized_parameters(image, seqhw, pool_type):
  model = flexi_vit.Model(7, seqhw=seqhw, pool_type=pool_type, **KEPT, **TINY)
  params = random_like(shapes(model, image.shape))
  size = flexi_vit.patch_size((24, 24), seqhw)
  plain = vit.Model(7, patch_size=size, pool_type=pool_type, **TINY)
  resized = flexi_vit.to_vit(params, (7, 7), size, model.options.seqhw)
  expected, _ = jax.jit(plain.apply)({"params": resized}, image)
  logits, _ = jax.jit(model.apply)({"params": params}, image)
  np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


def test_without_a_size_it_uses_what_it_keeps(image):
  model = flexi_vit.Model(7, patch_size=8, posemb_size=3, **TINY)
  params = random_like(shapes(model, image.shape))
  expected, _ = vit.Model(7, patch_size=8, **TINY).apply({"params": params}, image)
  np.testing.assert_array_equal(model.apply({"params": params}, image)[0], expected)


def test_larger_images_of_larger_patches_give_the_same_tokens(image):
  """The paper's invariance, through the model: twice the image at the same sequence length."""
  model = flexi_vit.Model(7, seqhw=3, **KEPT, **TINY)
  params = random_like(shapes(model, image.shape))
  logits, _ = model.apply({"params": params}, image)
  np.testing.assert_allclose(model.apply({"params": params}, enlarged(image, 8, 16))[0], logits, atol=1e-4)


def test_both_kept_embeddings_learn_at_every_size(image):
  model = flexi_vit.Model(7, head_zeroinit=False, **KEPT, **TINY)
  params = random_like(shapes(model, image.shape))
  for seqhw in (2, 8):
    sized = with_options(model, seqhw=(seqhw, seqhw))
    loss = lambda p, sized=sized: jnp.sum(sized.apply({"params": p}, image)[0][:, 0])
    grads = jax.jit(jax.grad(loss))(params)
    assert np.abs(grads["embedding"]["kernel"]).max() > 0
    assert np.abs(grads["pos_embedding"]).max() > 0


def step_cost(model, image):
  """What XLA counts of the gradient of a model's loss: floating-point operations."""
  params = shapes(model, image.shape)
  loss = lambda params, image: jnp.sum(model.apply({"params": params}, image)[0] ** 2)
  compiled = jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct(image.shape, image.dtype)).compile()
  return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("seqhw", [2, 3, 6])
def test_a_step_costs_what_it_does_in_a_plain_vit_of_that_size(seqhw):
  """The resizing of the two embeddings is all that it costs besides: under 2 % at a batch of 64."""
  image = np.zeros((64, 24, 24, 3), np.float32)
  flexible = step_cost(flexi_vit.Model(7, seqhw=seqhw, **KEPT, **TINY), image)
  plain = step_cost(vit.Model(7, patch_size=24 // seqhw, **TINY), image)
  assert plain <= flexible < 1.02 * plain


def test_a_saved_flexivit_loads_as_it_was(saved):
  model = flexi_vit.Model(7, seqhw=4, **KEPT, **TINY)
  params = random_like(shapes(model))
  loaded = flexi_vit.load(shapes(model), saved(params), model.options)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("patch, grid", [(8, 3), (4, 6), (3, 8)])
def test_a_plain_vit_gives_its_own_tokens_when_the_model_keeps_larger_patches(saved, image, patch, grid):
  """As the paper starts a student from its teacher: exact but for the positions where fewer are kept."""
  plain = vit.Model(7, patch_size=patch, **TINY)
  params = random_like(shapes(plain, image.shape))
  kept = dict(patch_size=12, posemb_size=grid)
  model = flexi_vit.Model(7, seqhw=grid, **kept, **TINY)
  loaded = flexi_vit.load(shapes(model, image.shape), saved(params), model.options)
  assert loaded["embedding"]["kernel"].shape == (12, 12, 3, 32)
  np.testing.assert_array_equal(loaded["pos_embedding"], params["pos_embedding"])
  larger = enlarged(image, patch, 12)
  expected, _ = plain.apply({"params": params}, image)
  logits, _ = model.apply({"params": loaded}, larger)
  np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_positions_of_a_plain_vit_are_resized_to_those_kept(saved):
  params = random_like(shapes(vit.Model(7, patch_size=8, **TINY), (1, 80, 80, 3)))
  loaded = flexi_vit.load(shapes(flexi_vit.Model(7, seqhw=10, **KEPT, **TINY), (1, 80, 80, 3)), saved(params))
  expected = scipy.ndimage.zoom(params["pos_embedding"].reshape(10, 10, 32), (0.7, 0.7, 1), order=1)
  np.testing.assert_allclose(loaded["pos_embedding"], expected.reshape(1, 49, 32), atol=1e-5)


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(seqhw=0), r"^model\.seqhw must be a whole number from 1 on, or \(height, width\)"),
    (dict(seqhw=(3, 3, 3)), r"^model\.seqhw must be"),
    (dict(posemb_size="7"), r"^model\.posemb_size must be"),
    (dict(patch_size=0), r"^model\.patch_size must be"),
    (dict(seqwh=3), r"^model\.seqwh is no key of the model flexi_vit .*'seqhw'"),
    (dict(pool_type="avg"), r"^model\.pool_type must be one of"),
  ],
)
def test_a_mistake_in_the_options_is_refused(options, words):
  with pytest.raises(UserError, match=words):
    flexi_vit.Model(7, **(TINY | options))


def test_patches_that_do_not_divide_the_image_are_refused_with_those_that_do():
  with pytest.raises(
    UserError, match=r"5x5 patches \(seqhw\) do not divide an image of 24x24 px; 1, 2, 3, 4, 6, 8, 12"
  ):
    shapes(flexi_vit.Model(7, seqhw=5, **KEPT, **TINY), (1, 24, 24, 3))


def test_a_file_that_keeps_larger_patches_is_refused(saved):
  path = saved(random_like(shapes(flexi_vit.Model(7, seqhw=2, patch_size=16, **TINY))))
  with pytest.raises(UserError, match=r"patches are 16x16 px, and kept at 8x8 .* set model.patch_size=\(16, 16\)"):
    flexi_vit.load(shapes(flexi_vit.Model(7, seqhw=2, patch_size=8, **TINY)), path)


def test_positions_that_are_no_square_are_refused(saved):
  path = saved(random_like(shapes(vit.Model(7, patch_size=8, **TINY), (1, 16, 24, 3))))
  with pytest.raises(
    UserError, match="6 positions are no square grid, and the file does not tell theirs; the model's grid is 7x7"
  ):
    flexi_vit.load(shapes(flexi_vit.Model(7, seqhw=2, **KEPT, **TINY)), path)
