import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import data_files, trees
from core.errors import UserError
from core.models import one_tower, registry, two_towers
from core.testing import compilation
from core.testing.params import random_like

WITNESS = data_files.find("core/models/witness")
SIZES = dict(width=32, depth=1, mlp_dim=64, num_heads=2)
OPTIONS = dict(
  image=dict(patch_size=8, pool_type="map", **SIZES),
  text=dict(vocab_size=100, **SIZES),
  out_dim=(None, 32),
  temperature_init=10.0,
  bias_init=-10.0,
)
ONE = dict(image=dict(patch_size=8, **SIZES), out_dim=16, temperature_init=10.0)

quick_compilation = compilation.quick()


def shapes(model, image=(1, 32, 32, 3), text=(1, 8)):
  text = jnp.zeros(text, jnp.int32 if len(text) == 2 else jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image), text)["params"]


def lines(tree):
  return sorted(f"{name} {leaf.shape}" for name, leaf in trees.flatten_with_names(tree))


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(1)
  images, rendered = (rng.uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32) for _ in range(2))
  return images, rng.integers(0, 100, (5, 8)).astype(np.int32), rendered


# Names and numbers.


def test_two_towers_have_the_published_names_and_shapes():
  model = two_towers.Model(
    image=dict(variant="mu/16"), text=dict(variant="mu", vocab_size=100), out_dim=(None, 32), bias_init=-10.0
  )
  assert lines(shapes(model, image=(1, 64, 64, 3))) == sorted((WITNESS / "two_towers.txt").read_text().splitlines())


def test_one_tower_has_the_published_names_and_shapes():
  model = one_tower.Model(image=dict(variant="mu/16"), out_dim=32)
  image = (1, 64, 64, 3)
  assert lines(shapes(model, image, image)) == sorted((WITNESS / "one_tower.txt").read_text().splitlines())


@pytest.mark.parametrize(
  "image, size, text, tokens, dim, vocabulary, millions",
  [
    ("B/16", 224, "B", 64, 768, 32_000, "203.16"),  # ViT-B-16-SigLIP.
    ("L/16", 256, "L", 64, 1024, 32_000, "652.15"),  # ViT-L-16-SigLIP-256.
    ("So400m/14", 224, "So400m", 16, 1152, 32_000, "877.36"),  # ViT-SO400M-14-SigLIP.
    ("B/16", 224, "B", 64, 768, 256_000, "375.19"),  # ViT-B-16-SigLIP2.
    ("g-opt/16", 256, "So400m", 64, 1536, 256_000, "1871.39"),  # ViT-gopt-16-SigLIP2-256.
  ],
)
def test_the_options_of_siglips_files_give_their_sizes(image, size, text, tokens, dim, vocabulary, millions):
  """As OpenCLIP's table of models has them, in millions of parameters."""
  model = two_towers.Model(
    image=dict(variant=image, pool_type="map", scan=True),
    text=dict(variant=text, vocab_size=vocabulary, scan=True),
    out_dim=(None, dim),
    bias_init=-10.0,
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes(model, (1, size, size, 3), (1, tokens))))
  assert f"{count / 1e6:.2f}" == millions


def test_embeddings_are_the_towers_outputs_at_length_one(inputs):
  images, text, _ = inputs
  model = two_towers.Model(**OPTIONS)
  params = random_like(shapes(model))
  zimg, ztxt, out = jax.jit(model.apply)({"params": params}, images, text)

  @jax.jit
  def by_hand(params, images, text):
    return model.img.apply({"params": params["img"]}, images)[0], model.txt.apply({"params": params["txt"]}, text)[0]

  for z, ours, name in zip(by_hand(params, images, text), (zimg, ztxt), ("img", "txt")):
    norm = np.linalg.norm(np.asarray(z), axis=1, keepdims=True)
    np.testing.assert_allclose(ours, z / norm, atol=1e-5)
    np.testing.assert_allclose(out[f"{name}/norm"], norm, rtol=1e-5)
    np.testing.assert_array_equal(out[f"{name}/normalized"], ours)
  np.testing.assert_allclose(out["t"], np.exp(params["t"]), rtol=1e-6)
  np.testing.assert_array_equal(out["t/parameter"], params["t"])
  np.testing.assert_array_equal(out["b"], params["b"])
  assert {"img/encoded", "img/head_input", "txt/transformed", "txt/logits"} <= set(out)


def test_what_is_not_given_is_not_computed(inputs):
  images, text, _ = inputs
  model = two_towers.Model(**OPTIONS)
  params = random_like(shapes(model))
  zimg, none, out = jax.eval_shape(model.apply, {"params": {k: params[k] for k in ("img", "t", "b")}}, images)
  assert none is None
  assert zimg.shape == (3, 32)
  assert not any(name.startswith("txt/") for name in out)
  none, ztxt, out = jax.eval_shape(
    lambda params, text: model.apply({"params": params}, text=text), {k: params[k] for k in ("txt", "t", "b")}, text
  )
  assert none is None
  assert ztxt.shape == (5, 32)
  assert not any(name.startswith("img/") for name in out)


def test_one_tower_embeds_both_by_the_same_weights(inputs):
  images, _, rendered = inputs
  model = one_tower.Model(**ONE)
  params = random_like(shapes(model, text=(1, 32, 32, 3)))
  apply = jax.jit(model.apply)
  zimg, ztxt, out = apply({"params": params}, images, rendered)
  again, of_images, _ = apply({"params": params}, rendered, images)
  np.testing.assert_allclose(again, ztxt, atol=1e-5)
  np.testing.assert_allclose(of_images, zimg, atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, atol=1e-5)
  assert {"img/normalized", "txt/normalized", "txt/head_input", "t"} <= set(out)
  assert "b" not in out


@pytest.mark.parametrize("family, options", [(two_towers, OPTIONS), (one_tower, ONE | dict(bias_init=-10.0))])
def test_temperature_and_bias_start_as_told_and_the_heads_with_a_direction(family, options, inputs):
  images, text, rendered = inputs
  model = family.Model(**(options | dict(out_dim=16)))
  second = text if family is two_towers else rendered
  params = jax.jit(model.init)(jax.random.key(0), images, second)["params"]
  np.testing.assert_allclose(params["t"], [np.log(10)], rtol=1e-6)
  np.testing.assert_array_equal(params["b"], [-10])
  heads = [params[tower]["head"]["kernel"] for tower in ("img", "txt") if tower in params]
  assert all(np.asarray(kernel).std() > 0.1 for kernel in heads)


def test_bfloat16_towers_give_float32_embeddings(inputs):
  images, text, _ = inputs
  half = dict(dtype_mm="bfloat16")
  model = two_towers.Model(**(OPTIONS | {kind: OPTIONS[kind] | half for kind in ("image", "text")}))
  params = random_like(shapes(model), spread=0.1)
  zimg, ztxt, _ = jax.eval_shape(model.apply, {"params": params}, images, text)
  assert (zimg.dtype, ztxt.dtype) == (jnp.float32, jnp.float32)


def test_only_training_drops_anything_in_both_towers(inputs):
  images, text, _ = inputs
  dropping = dict(dropout=0.3)
  model = two_towers.Model(**(OPTIONS | {kind: OPTIONS[kind] | dropping for kind in ("image", "text")}))
  params = random_like(shapes(model))

  @jax.jit
  def run(params, images, text):
    train = model.apply({"params": params}, images, text, train=True, rngs={"dropout": jax.random.key(0)})
    return train[:2], model.apply({"params": params}, images, text)[:2]

  for dropped, evaluated in zip(*run(params, images, text)):
    assert not np.allclose(dropped, evaluated, atol=1e-2)


def test_towers_may_be_other_models():
  model = two_towers.Model(
    image_model="mixer",
    image=dict(patch_size=8, num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16),
    text_model="proj.flaxformer.bert",
    text=dict(config="base", head_zeroinit=False, **(SIZES | dict(vocab_size=50, max_len=8))),
    out_dim=16,
  )
  tree = shapes(model)
  assert tree["img"]["head"]["kernel"].shape == (16, 16)
  assert tree["txt"]["BertEncoder_0"]["layer_norm"]["scale"].shape == (32,)
  assert tree["txt"]["head"]["kernel"].shape == (32, 16)


# Bad input.


@pytest.mark.parametrize(
  "options, line",
  [
    (dict(image_model="vitt"), "model.image_model: there is no 'vitt' (did you mean 'vit'?)"),
    (dict(text_model="vit"), "model.text_model: there is no 'vit'"),
    (dict(image=dict(widht=3)), "model.image.widht is no key of the model vit (did you mean 'width'?)"),
    (dict(text=dict(variant="Q")), "model.text.variant must be a variant, 'B' for one, got 'Q': there is no 'Q'"),
    (dict(out_dim=(32, 16)), "model.out_dim must be of one size for images and texts, got (32, 16)"),
    (dict(out_dim="B"), "model.out_dim must be the size of the embedding, or (image, text)"),
    (dict(out_dim=(None, None, 3)), "model.out_dim must be"),
    (dict(temperature_init=0), "model.temperature_init must be a number above 0, got 0"),
    (dict(bias_init="-10"), "model.bias_init must be a number, got '-10'"),
    (
      dict(out_dim=32, image=dict(head_zeroinit=True)),
      "model.image.head_zeroinit must not be True: embeddings of zeros have no direction",
    ),
    (dict(num_classes=10), "num_classes: a model of images and texts has no classes, got 10"),
  ],
)
def test_a_wrong_option_is_one_line(options, line):
  with pytest.raises(UserError) as e:
    two_towers.Model(**options)
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_a_wrong_input_is_one_line():
  model = two_towers.Model(**OPTIONS)
  with pytest.raises(UserError, match=r"texts must be whole numbers \[batch, tokens\], got float32 \[1, 8, 8, 3\]"):
    shapes(model, text=(1, 8, 8, 3))
  with pytest.raises(UserError, match=r"the image tower gives 32 numbers, and the text tower 24"):
    shapes(two_towers.Model(**(OPTIONS | dict(out_dim=(None, 24)))))
  with pytest.raises(UserError, match=r"config.model.image: gives \[16, 32\] numbers an example; choose a pool_type"):
    shapes(two_towers.Model(**(OPTIONS | dict(image=OPTIONS["image"] | dict(pool_type="none")))))
  with pytest.raises(UserError, match=r"one_tower takes texts rendered to images .*, got \[1, 8\]"):
    shapes(one_tower.Model(**ONE))
  with pytest.raises(UserError, match=r"^model\.out_dim must be a whole number from 1 on or None"):
    one_tower.Model(**(ONE | dict(out_dim=(16, 16))))


@pytest.mark.parametrize(
  "name, module",
  [
    ("two_towers", two_towers),
    ("proj.image_text.two_towers", two_towers),
    ("one_tower", one_tower),
    ("proj.clippo.one_tower", one_tower),
  ],
)
def test_the_registry_knows_them_by_both_names(name, module):
  assert registry.get(name) is module
