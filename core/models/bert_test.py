import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import data_files, trees
from core.checkpoint import pretrained, remote
from core.errors import UserError
from core.models import bert, registry
from core.models.foreign import bert as foreign_bert
from core.recipe.models.bert import VARIANTS
from core.testing import compilation
from core.testing.params import random_like, with_options

WITNESS = data_files.find("core/models/witness")
TINY = dict(width=24, depth=2, mlp_dim=48, num_heads=2, vocab_size=50, max_len=12)

quick_compilation = compilation.quick()


def shapes(model, length=6):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, length), jnp.int32))["params"]


def named(tree):
  return dict(trees.flatten_with_names(tree))


@pytest.fixture(scope="module")
def tiny():
  """A model with a head, its parameters, and its function."""
  model = bert.Model(16, **TINY)
  return model, random_like(shapes(model)), jax.jit(model.apply)


@pytest.fixture
def text():
  return np.array([[7, 3, 9, 4, 0, 0], [7, 5, 1, 2, 8, 4]], np.int32)


# Names, shapes, sizes.


def test_parameters_have_the_published_names_and_shapes():
  tree = shapes(bert.Model(768, config="base"))
  of_first = [f"{name} {leaf.shape}" for name, leaf in named(tree).items() if "layers_" not in name or "s_0/" in name]
  assert sorted(of_first) == sorted((WITNESS / "bert.txt").read_text().splitlines())
  layers = tree["BertEncoder_0"]["encoder_block"]["layer_sequence"]
  assert set(layers) == {f"layers_{i}" for i in range(12)}
  assert len({str(jax.tree.map(lambda leaf: leaf.shape, layer)) for layer in layers.values()}) == 1


@pytest.mark.parametrize("variant, count", [("base", 109_482_240), ("large", 335_141_888)])
def test_variants_have_as_many_parameters_as_in_transformers(variant, count):
  """Those of bert-base-uncased and bert-large-uncased, 110 M and 340 M in the paper, have a pooler besides."""
  width = VARIANTS[variant][0]
  ours = sum(leaf.size for leaf in jax.tree.leaves(shapes(bert.Model(variant=variant))))
  assert ours + width * width + width == count


def test_weights_start_near_zero_as_in_the_release():
  model = bert.Model(16, **(TINY | dict(vocab_size=500, depth=1)))
  params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 6), jnp.int32))["params"]
  embedding = params["BertEncoder_0"]["embedder"]["embedders_token_ids"]["embedding"]
  # A normal distribution of 0.02, of which what is beyond twice that is drawn anew.
  np.testing.assert_allclose(np.std(embedding), 0.02 * 0.8796, rtol=0.03)
  assert np.abs(embedding).max() <= 0.04
  assert not params["head"]["kernel"].any()


# Numbers; those of transformers are held in foreign/bert_test.py.


def test_padding_is_seen_by_no_token(tiny, text):
  model, params, apply = tiny
  output, out = apply({"params": params}, text)
  assert out["transformed"].shape == (2, 6, 24)
  np.testing.assert_array_equal(out["pre_logits"], out["transformed"][:, 0])
  np.testing.assert_allclose(output, out["pre_logits"] @ params["head"]["kernel"] + params["head"]["bias"], atol=1e-5)
  shorter, _ = jax.jit(model.apply)({"params": params}, text[:1, :4])
  np.testing.assert_allclose(shorter[0], output[0], atol=1e-5)


def test_dropout_acts_in_training_alone(text):
  model = bert.Model(16, **(TINY | dict(depth=1)))
  params = random_like(shapes(model))

  @jax.jit
  def run(rngs):
    train = lambda rng: model.apply({"params": params}, text, train=True, rngs={"dropout": rng})[0]
    return *map(train, rngs), model.apply({"params": params}, text)[0]

  first, other, evaluated = run(jax.random.split(jax.random.key(0)))
  assert not np.allclose(first, other, atol=1e-2)
  assert not np.allclose(first, evaluated, atol=1e-2)


def test_rematerialization_changes_no_gradient(text):
  model = bert.Model(16, **(TINY | dict(depth=1)))
  params = random_like(shapes(model))
  loss = lambda model: lambda params: (model.apply({"params": params}, text)[0] ** 2).sum()
  expected, ours = (
    jax.jit(jax.grad(loss(each)))(params) for each in (model, with_options(model, remat_policy="nothing_saveable"))
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, expected)


def test_bfloat16_keeps_parameters_norms_and_outputs_float32(tiny, text):
  model, params, apply = tiny
  half = with_options(model, dtype_mm="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}
  output, out = jax.jit(half.apply)({"params": params}, text)
  assert (out["transformed"].dtype, output.dtype) == (jnp.bfloat16, jnp.float32)
  expected, _ = apply({"params": params}, text)
  np.testing.assert_allclose(output, expected, atol=0.05 * np.abs(expected).max())


# Files.


def test_the_text_tower_of_a_lit_file_loads(tiny, tmp_path):
  model, params, _ = tiny
  path = str(tmp_path / "lit.npz")
  pretrained.save_params(path, {"params": {"txt": params, "img": {"cls": np.ones(3)}, "t": np.ones(1)}})
  jax.tree.map(np.testing.assert_array_equal, bert.load(shapes(model), f"{path}:txt"), params)


def as_release(folder):
  """What TensorFlow wrote (witness/generate_bert_release.py) of the weights that transformers ran."""
  folder.mkdir(parents=True)
  for file in (WITNESS / "bert_release").iterdir():
    (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("location", ["bert", "bert/bert_model.ckpt"])
def test_the_original_release_gives_what_transformers_computes_of_its_weights(location, tmp_path):
  as_release(tmp_path / "bert")
  model = bert.Model(gelu="exact", **TINY)
  params = bert.load(shapes(model), str(tmp_path / location))
  with np.load(WITNESS / "text_hf.npz") as file:
    text, expected = file["text"], file["bert/output"]
  np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, text)[0], expected, atol=1e-4)


def test_the_release_is_found_in_the_cache_under_its_short_name(tiny, tmp_path, monkeypatch):
  monkeypatch.setenv("VISION_CACHE", str(tmp_path / "cache"))
  for file in (WITNESS / "bert_release").iterdir():
    place = remote.cached_path(f"gs://vit_models/lit/bert/uncased_L-12_H-768_A-12/{file.name}")
    place.parent.mkdir(parents=True)
    place.write_bytes(file.read_bytes())
    # What `remote` leaves beside a complete file.
    place.with_name(f"{place.name}.json").write_text(f'{{"size": {file.stat().st_size}}}')
  _, fresh, _ = tiny
  with pytest.raises(UserError, match=r"^bert_base: it has no head, and the model a head of 16 classes"):
    bert.load(fresh, "bert_base")
  loaded = bert.load(fresh, "bert_base", dont_load=["head/.*"])
  np.testing.assert_array_equal(loaded["head"]["kernel"], fresh["head"]["kernel"])
  assert not np.array_equal(
    loaded["BertEncoder_0"]["layer_norm"]["scale"], fresh["BertEncoder_0"]["layer_norm"]["scale"]
  )


def test_weights_of_another_vocabulary_or_model_are_refused(tmp_path):
  as_release(tmp_path / "bert")
  path = str(tmp_path / "bert")
  with pytest.raises(UserError, match=r"its vocabulary has 50 tokens, and that of the model 30,522"):
    bert.load(shapes(bert.Model(**(TINY | dict(vocab_size=30_522)))), path)
  with pytest.raises(UserError, match="not the weights of this model: it lacks BertEncoder_0/encode"):
    bert.load(shapes(bert.Model(**(TINY | dict(depth=3)))), path)
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"a folder without model\.safetensors"):
    bert.load(shapes(bert.Model(**TINY)), str(tmp_path / "empty"))


def test_another_checkpoint_of_tensorflow_is_told_by_what_it_holds():
  with pytest.raises(UserError, match=r"^x\.ckpt: not a checkpoint of BERT's release; it holds a, b$"):
    foreign_bert.from_release({"a": np.ones(1), "b": np.ones(1)}, source="x.ckpt")


# Bad input.


@pytest.mark.parametrize(
  "options, line",
  [
    (dict(config="bas"), "model.config must be one of 'base', 'large', got 'bas'"),
    (dict(config="base", variant="large"), "model: config='base' and variant='large' mean the same"),
    (dict(layers=3), "model.layers is no key of the model bert"),
    (dict(gelu="erf"), "model.gelu must be one of 'tanh', 'exact', got 'erf'"),
    (dict(width=100), "model.width must be a multiple of num_heads, 12, got 100"),
    (dict(max_len=0), "model.max_len must be a whole number from 1 on, got 0"),
    (dict(dropout=-0.1), "model.dropout must be a number in [0, 1), got -0.1"),
    (dict(head_zeroinit=0), "model.head_zeroinit must be True or False, got 0"),
  ],
)
def test_a_wrong_option_is_one_line(options, line):
  with pytest.raises(UserError) as e:
    bert.Model(16, **options)
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_a_wrong_text_is_one_line():
  model = bert.Model(16, **TINY)
  with pytest.raises(UserError, match=r"texts of 13 tokens; BERT has positions for 12 \(max_len\)"):
    shapes(model, length=13)
  with pytest.raises(UserError, match=r"whole numbers \[batch, tokens\], got float32 \[1, 8\]"):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8)))


@pytest.mark.parametrize("name", ["bert", "proj.flaxformer.bert"])
def test_the_registry_knows_it_by_both_names(name):
  assert registry.get(name) is bert
