import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import data_files, trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import layers, registry, text_transformer
from core.testing import compilation
from core.testing.params import random_like, with_options

TINY = dict(width=32, depth=2, mlp_dim=64, num_heads=2, vocab_size=100)
# INTEROP: width 32, vocab 100, 8 tokens, 16 outputs; depth 1.
PUBLISHED = data_files.find("core/models/witness/text_transformer.txt")

quick_compilation = compilation.quick()


def shapes(model, length=8):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, length), jnp.int32))["params"]


def named(tree):
  return dict(trees.flatten_with_names(tree))


@pytest.fixture
def text():
  return np.random.default_rng(0).integers(0, 100, (3, 8)).astype(np.int32)


def test_parameters_have_the_published_names_and_shapes():
  tree = shapes(text_transformer.Model(16, **(TINY | dict(depth=1))))
  lines = [f"{name} {leaf.shape}" for name, leaf in trees.flatten_with_names(tree)]
  assert sorted(lines) == sorted(PUBLISHED.read_text().splitlines())
  assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


def test_parameters_start_as_published():
  params = jax.jit(text_transformer.Model(100, **(TINY | dict(width=128))).init)(
    jax.random.key(0), jnp.zeros((1, 64), jnp.int32)
  )["params"]
  np.testing.assert_allclose(np.std(params["pos_embedding"]), 1 / np.sqrt(128), rtol=0.05)
  np.testing.assert_allclose(np.std(params["Embed_0"]["embedding"]), 1 / np.sqrt(128), rtol=0.1)
  np.testing.assert_allclose(np.std(params["head"]["kernel"]), 1 / np.sqrt(128), rtol=0.05)


@pytest.mark.parametrize("pool_type", ["last", "first", "gap", "mean", "max", "gmp", "map"])
def test_pooling_is_what_its_name_says(pool_type, text):
  model = text_transformer.Model(16, pool_type=pool_type, **(TINY | dict(depth=1)))
  params = random_like(shapes(model))
  output, out = jax.jit(model.apply)({"params": params}, text)
  assert {name: leaf.shape for name, leaf in out.items() if name != "encoder"} == {
    "embedded": (3, 8, 32),
    "with_posemb": (3, 8, 32),
    "transformed": (3, 8, 32),
    "pre_logits": (3, 32),
    "logits": (3, 16),
  }
  np.testing.assert_allclose(out["embedded"], params["Embed_0"]["embedding"][text], rtol=1e-6)
  np.testing.assert_allclose(out["with_posemb"], out["embedded"] + params["pos_embedding"], rtol=1e-5)
  x = np.asarray(out["transformed"])
  pooled = {"last": x[:, -1], "first": x[:, 0], "gap": x.mean(1), "mean": x.mean(1), "max": x.max(1), "gmp": x.max(1)}
  if pool_type == "map":
    assert "MAPHead_0" in params
  else:
    np.testing.assert_allclose(out["pre_logits"], pooled[pool_type], atol=1e-5)
  expected = np.asarray(out["pre_logits"]) @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(output, expected, atol=1e-4)


def test_a_head_may_do_without_a_bias_start_at_zero_or_be_left_away(text):
  assert set(shapes(text_transformer.Model(16, head_bias=False, **TINY))["head"]) == {"kernel"}
  params = jax.jit(text_transformer.Model(16, head_zeroinit=True, **TINY).init)(jax.random.key(0), text)["params"]
  assert not params["head"]["kernel"].any()
  model = text_transformer.Model(**TINY)
  params = random_like(shapes(model))
  output, out = jax.jit(model.apply)({"params": params}, text)
  np.testing.assert_array_equal(output, out["pre_logits"])
  assert "logits" not in out


def test_fixed_positions_are_those_of_attention_is_all_you_need(text):
  expected = [
    [np.sin(l / 10_000 ** (2 * k / 32)) for k in range(16)] + [np.cos(l / 10_000 ** (2 * k / 32)) for k in range(16)]
    for l in range(8)  # noqa: E741 (the letter of the equation)
  ]
  np.testing.assert_allclose(layers.sincos1d(8, 32), [expected], atol=1e-6)
  model = text_transformer.Model(posemb="sincos", **TINY)
  params = random_like(shapes(model))
  assert "pos_embedding" not in params
  _, out = jax.jit(model.apply)({"params": params}, text)
  np.testing.assert_allclose(out["with_posemb"] - out["embedded"], np.tile([expected], (3, 1, 1)), atol=1e-5)


def test_bfloat16_keeps_parameters_norms_and_outputs_float32(text):
  exact = text_transformer.Model(16, **(TINY | dict(depth=1)))
  model = with_options(exact, dtype_mm="bfloat16")
  params = random_like(shapes(exact), spread=0.1)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype("float32")}
  output, out = jax.jit(model.apply)({"params": params}, text)
  assert (out["embedded"].dtype, out["with_posemb"].dtype) == (jnp.bfloat16, jnp.bfloat16)
  assert (out["transformed"].dtype, output.dtype) == (jnp.float32, jnp.float32)
  expected, _ = jax.jit(exact.apply)({"params": params}, text)
  np.testing.assert_allclose(output, expected, atol=0.03 * np.abs(expected).max())


def test_dropout_acts_in_training_alone(text):
  model = text_transformer.Model(16, dropout=0.3, **(TINY | dict(depth=1)))
  params = random_like(shapes(model))

  @jax.jit
  def run(rngs):
    train = lambda rng: model.apply({"params": params}, text, train=True, rngs={"dropout": rng})[0]
    return *map(train, rngs), model.apply({"params": params}, text)[0]

  first, other, evaluated = run(jax.random.split(jax.random.key(0)))
  assert not np.allclose(first, other, atol=1e-2)
  assert not np.allclose(first, evaluated, atol=1e-2)


# Files.


@pytest.fixture
def saved(tmp_path):
  def save(params, prefix=""):
    path = str(tmp_path / "weights.npz")
    pretrained.save_params(path, {f"{prefix}{name}": leaf for name, leaf in named(params).items()})
    return path

  return save


def test_a_saved_tower_loads_alone_and_across_scan_in_both_directions(saved):
  plain, scanned = (text_transformer.Model(16, scan=scan, **TINY) for scan in (False, True))
  params = random_like(shapes(plain))
  stacked = text_transformer.load(shapes(scanned), f"{saved(params, 'params/txt/')}:txt")
  kernel = stacked["Encoder_0"]["encoderblock"]["MlpBlock_0"]["Dense_0"]["kernel"]
  np.testing.assert_array_equal(kernel[1], params["Encoder_0"]["encoderblock_1"]["MlpBlock_0"]["Dense_0"]["kernel"])
  again = text_transformer.load(shapes(plain), saved(stacked))
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_head_of_another_size_can_be_left_out(saved):
  path = saved(random_like(shapes(text_transformer.Model(16, **TINY))))
  fresh = random_like(shapes(text_transformer.Model(24, **TINY)), spread=0.1)
  with pytest.raises(UserError, match="it has a head of 16 classes, and the model a head of 24"):
    text_transformer.load(fresh, path)
  loaded = text_transformer.load(fresh, path, dont_load=["head/.*"])
  np.testing.assert_array_equal(loaded["head"]["kernel"], fresh["head"]["kernel"])


def test_weights_of_another_vocabulary_are_refused_with_both_sizes(saved):
  path = saved(random_like(shapes(text_transformer.Model(16, **TINY))))
  other = shapes(text_transformer.Model(16, **(TINY | dict(vocab_size=32_000))))
  with pytest.raises(
    UserError, match=r"its vocabulary has 100 tokens, and that of the model 32,000: set vocab_size=100"
  ):
    text_transformer.load(other, path)


def test_weights_for_texts_of_another_length_are_refused_with_both(saved):
  path = saved(random_like(shapes(text_transformer.Model(16, **TINY), length=64)))
  with pytest.raises(UserError, match=r"for texts of 64 tokens, and those here have 8: pad or cut texts to 64"):
    text_transformer.load(shapes(text_transformer.Model(16, **TINY)), path)


# Bad input.


@pytest.mark.parametrize(
  "options, line",
  [
    (dict(variant="B/16"), "model.variant must be a variant, 'B' for one, got 'B/16': there is no 'B/16' (nearest: "),
    (dict(vocab=10), "model.vocab is no key of the model text_transformer"),
    (
      dict(pool_type="tok"),
      "model.pool_type must be one of 'last', 'first', 'gap' (or 'mean'), 'map', 'max' (or",
    ),
    (dict(posemb="sincos2d"), "model.posemb must be one of 'learn', 'sincos', got 'sincos2d'"),
    (dict(remat_policy="everything"), "model.remat_policy must be one of 'none', 'nothing_saveable'"),
    (dict(vocab_size=0), "model.vocab_size must be a whole number in [1, 2147483647], got 0"),
    (dict(vocab_size=2**31), "model.vocab_size must be a whole number in [1, 2147483647], got 2147483648"),
    (dict(max_len=16.0), "model.max_len must be a whole number from 1 on, got 16.0"),
    (dict(head_bias=0), "model.head_bias must be True or False, got 0"),
    (dict(width=100, num_heads=3), "model.width must be a multiple of num_heads, 3, got 100"),
    (dict(width=9, num_heads=3, posemb="sincos"), "model.width must be even for posemb='sincos', got 9"),
    (dict(dropout=1), "model.dropout must be a number in [0, 1), got 1"),
  ],
)
def test_a_wrong_option_is_one_line(options, line):
  with pytest.raises(UserError) as e:
    text_transformer.Model(16, **options)
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_a_wrong_text_is_one_line():
  model = text_transformer.Model(16, max_len=8, **TINY)
  init = lambda text: jax.eval_shape(model.init, jax.random.key(0), text)
  with pytest.raises(UserError, match=r"whole numbers \[batch, tokens\], got float32 \[1, 8\]"):
    init(jnp.zeros((1, 8)))
  with pytest.raises(UserError, match=r"got int32 \[8\]"):
    init(jnp.zeros(8, jnp.int32))
  with pytest.raises(UserError, match=r"texts of 16 tokens, and the model is for 8 \(max_len\)"):
    init(jnp.zeros((1, 16), jnp.int32))
  model = text_transformer.Model(16, **TINY)
  with pytest.raises(UserError, match="texts of 16 tokens, and pos_embedding was made for 8; pad them to 8"):
    jax.eval_shape(model.apply, {"params": random_like(shapes(model))}, jnp.zeros((1, 16), jnp.int32))


@pytest.mark.parametrize("name", ["text_transformer", "proj.image_text.text_transformer"])
def test_the_registry_knows_it_by_both_names(name):
  assert registry.get(name) is text_transformer
