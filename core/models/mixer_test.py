import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import data_files, trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import mixer, registry
from core.models.foreign import mixer as foreign
from core.models.foreign import table
from core.testing import compilation
from core.testing.params import random_like, shapes, with_options

WITNESS = data_files.find("core/models/witness")
TINY = dict(patch_size=8, hidden_dim=32, num_blocks=2, tokens_mlp_dim=24, channels_mlp_dim=64)

quick_compilation = compilation.quick()


def named(tree):
  return dict(trees.flatten_with_names(tree))


@pytest.fixture
def image():
  return np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


def test_parameters_have_the_published_names_and_shapes():
  options = dict(patch_size=16, hidden_dim=32, num_blocks=1, tokens_mlp_dim=16, channels_mlp_dim=64)
  tree = shapes(mixer.Model(7, **options), (1, 64, 64, 3))
  lines = [f"{name} {leaf.shape}" for name, leaf in named(tree).items()]
  assert sorted(lines) == sorted((WITNESS / "mixer.txt").read_text().splitlines())
  assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


def test_options_override_the_variant():
  model = mixer.Model(5, variant="L/32", num_blocks=3)
  assert (model.options.hidden_dim, model.options.num_blocks, model.options.patch_size) == (1024, 3, (32, 32))
  assert (model.options.tokens_mlp_dim, model.options.channels_mlp_dim) == (512, 4096)
  assert mixer.Model(variant="S").options.patch_size == (16, 16)
  assert mixer.Model(patch_size=[8, 4]).options.patch_size == (8, 4)
  assert registry.get("mixer") is mixer


@pytest.mark.parametrize("gelu", ["exact", "tanh"])
def test_logits_and_input_gradients_are_those_of_timm(gelu):
  with np.load(WITNESS / "mixer_timm.npz") as file:
    state_dict = {name.split("/")[1]: file[name].astype(np.float32) for name in file if name.startswith("state_dict/")}
    image, cotangent = file["image"], file["cotangent"]
    expected = file[f"{gelu}/logits"], file[f"{gelu}/image_grad"]
  params = trees.from_names(table.to_published(foreign.TIMM, state_dict, source="x"))
  model = mixer.Model(7, gelu=gelu, **TINY)

  @jax.jit
  def logits_and_grad(params, image, cotangent):
    logits, pullback = jax.vjp(lambda image: model.apply({"params": params}, image)[0], image)
    return logits, pullback(cotangent)[0]

  for ours, theirs in zip(logits_and_grad(params, image, cotangent), expected):
    # The two kinds of GELU are further apart.
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_head_starts_at_zero_and_the_rest_as_in_flax(image):
  model = mixer.Model(7, **{**TINY, "num_blocks": 1, "hidden_dim": 256, "channels_mlp_dim": 1024})
  other = with_options(model, head_zeroinit=False)

  @jax.jit
  def start(rng):
    return *model.init_with_output(rng, image), other.init(rng, image)["params"]["head"]["kernel"]

  (logits, out), variables, other_kernel = start(jax.random.key(0))
  assert not logits.any()
  assert np.std(out["pre_logits"]) > 0.1
  dense = variables["params"]["MixerBlock_0"]["channel_mixing"]["Dense_0"]
  np.testing.assert_allclose(np.std(dense["kernel"]), 1 / np.sqrt(256), rtol=0.02)  # LeCun normal.
  assert not dense["bias"].any()
  assert other_kernel.any()


def test_intermediates_are_named_and_without_classes_the_output_is_the_representation(image):
  model = mixer.Model(7, **TINY)
  params = random_like(shapes(model))
  logits, out = jax.jit(model.apply)({"params": params}, image)
  assert {name: leaf.shape for name, leaf in out.items()} == {
    "stem": (2, 4, 4, 32),
    "input_tokens": (2, 16, 32),
    "block_0": (2, 16, 32),
    "block_1": (2, 16, 32),
    "pre_logits": (2, 32),
    "logits": (2, 7),
  }
  np.testing.assert_array_equal(logits, out["logits"])
  patches = image.reshape(2, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, -1)
  expected = patches @ params["stem"]["kernel"].reshape(-1, 32) + params["stem"]["bias"]
  np.testing.assert_allclose(out["stem"], expected, atol=1e-4)
  head = params.pop("head")
  representation, out = jax.jit(model.clone(num_classes=None).apply)({"params": params}, image)
  assert "logits" not in out
  np.testing.assert_allclose(representation @ head["kernel"] + head["bias"], logits, atol=1e-4)


def test_stochastic_depth_skips_more_of_later_blocks_and_only_in_training():
  model = mixer.Model(None, stoch_depth=0.6, **{**TINY, "num_blocks": 3})
  params = random_like(shapes(model))
  image = np.random.default_rng(1).uniform(-1, 1, (1000, 32, 32, 3)).astype(np.float32)
  run = lambda seed: model.apply({"params": params}, image, train=True, rngs={"dropout": jax.random.key(seed)})[1]
  out = jax.jit(run)(0)
  inputs = out["input_tokens"]
  for name, rate in (("block_0", 0), ("block_1", 0.3), ("block_2", 0.6)):
    untouched = np.all(out[name] == inputs, axis=(1, 2)).mean()  # Both branches were skipped.
    np.testing.assert_allclose(untouched, rate**2, atol=0.05)
    inputs = out[name]
  assert not np.allclose(jax.jit(run)(1)["pre_logits"], out["pre_logits"], atol=1e-2)
  plain = with_options(model, stoch_depth=0.0)
  evaluated, expected = (jax.jit(m.apply)({"params": params}, image[:8])[0] for m in (model, plain))
  np.testing.assert_array_equal(evaluated, expected)


def test_what_stochastic_depth_keeps_is_what_evaluation_gives():
  """The published models divide nothing by the rate of keeping."""
  model = mixer.Model(None, stoch_depth=0.4, **{**TINY, "num_blocks": 2})
  params = random_like(shapes(model))
  image = np.random.default_rng(1).uniform(-1, 1, (1000, 32, 32, 3)).astype(np.float32)
  _, trained = model.apply({"params": params}, image, train=True, rngs={"dropout": jax.random.key(0)})
  _, evaluated = model.apply({"params": params}, image)
  same = np.abs(trained["block_1"] - evaluated["block_1"]).max((1, 2)) < 1e-4
  np.testing.assert_allclose(same.mean(), 0.6**2, atol=0.05)  # Neither branch was skipped.


def test_bfloat16_halves_the_activations_and_keeps_norms_and_logits_float32(image):
  exact = mixer.Model(7, **TINY)
  model = with_options(exact, dtype_mm="bfloat16")
  params = random_like(shapes(exact), spread=0.1)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype("float32")}
  logits, out = jax.jit(model.apply)({"params": params}, image)
  assert {out[name].dtype.name for name in ("stem", "input_tokens", "block_0", "block_1")} == {"bfloat16"}
  assert (out["pre_logits"].dtype, logits.dtype) == (jnp.float32, jnp.float32)
  expected, _ = jax.jit(exact.apply)({"params": params}, image)
  np.testing.assert_allclose(logits, expected, atol=0.03 * np.abs(expected).max())


# Weights.


@pytest.fixture
def saved(tmp_path):
  def save(named_params):
    path = str(tmp_path / "weights.npz")
    pretrained.save_params(path, trees.from_names(named_params))
    return path

  return save


def assert_same(params, expected):
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_a_saved_model_loads_as_it_was(saved, prefix):
  model = mixer.Model(7, **{**TINY, "num_blocks": 11})
  params = random_like(shapes(model))
  path = saved({prefix + name: leaf for name, leaf in named(params).items()})
  assert_same(mixer.load(shapes(model), path), params)


@pytest.mark.parametrize("second_norm", ["LayerNorm_1", "LayerNorm_2"])
def test_the_layout_of_older_files_loads(saved, second_norm):
  model = mixer.Model(7, **{**TINY, "num_blocks": 11})
  params = random_like(shapes(model))
  older = {}
  for name, leaf in named(params).items():
    for now, before in {
      "stem/": "embedding/",
      "pre_head_layer_norm": "Mixer/encoder_norm",
      "MixerBlock_": "Mixer/encoderblock_",
      "LayerNorm_1": second_norm,
      "_mixing/": "_mixing_phase_0/",
      "Dense_0/kernel": "kernel1",
      "Dense_0/bias": "bias1",
      "Dense_1/kernel": "kernel2",
      "Dense_1/bias": "bias2",
    }.items():
      name = name.replace(now, before)
    older[name] = leaf
  assert "Mixer/encoderblock_10/token_mixing_phase_0/kernel1" in older
  assert_same(mixer.load(shapes(model), saved(older)), params)


def test_another_image_size_loads_if_the_patches_grow_with_it_and_is_refused_otherwise(saved):
  small, large = (mixer.Model(7, **{**TINY, "patch_size": size}) for size in (8, 16))
  params = random_like(shapes(small))
  path = saved(named(params))
  loaded = mixer.load(shapes(large, (1, 64, 64, 3)), path)
  assert loaded["stem"]["kernel"].shape == (16, 16, 3, 32)
  # What upsampled patches give, resized kernels give.
  image = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
  upsampled = jax.image.resize(image.reshape(2, 4, 8, 4, 8, 3), (2, 4, 16, 4, 16, 3), "bilinear").reshape(2, 64, 64, 3)
  logits, expected = (
    jax.jit(m.apply)({"params": p}, x)[0] for m, p, x in ((large, loaded, upsampled), (small, params, image))
  )
  np.testing.assert_allclose(logits, expected, atol=2e-3 * np.abs(expected).max())
  with pytest.raises(UserError) as e:
    mixer.load(shapes(small, (1, 64, 64, 3)), path)
  assert str(e.value).startswith(f"{path}: trained with 16 patches an image, but this model has 64")
  assert "\n" not in str(e.value)
  fresh = random_like(shapes(small, (1, 64, 64, 3)), spread=0.1)
  loaded = mixer.load(fresh, path, dont_load=[".*/token_mixing/.*"])
  assert_same(loaded["MixerBlock_1"]["token_mixing"], fresh["MixerBlock_1"]["token_mixing"])
  assert_same(loaded["MixerBlock_1"]["channel_mixing"], params["MixerBlock_1"]["channel_mixing"])


def test_a_head_of_another_size_keeps_its_fresh_value_if_told_so(saved):
  params = random_like(shapes(mixer.Model(21, **TINY)))
  fresh = random_like(shapes(mixer.Model(7, **TINY)), spread=0.1)
  path = saved(named(params))
  loaded = mixer.load(fresh, path, dont_load=["head/.*"])
  assert_same(loaded.pop("head"), fresh["head"])
  params.pop("head")
  assert_same(loaded, params)
  with pytest.raises(UserError, match=r"weights.npz: .*dont_load"):
    mixer.load(fresh, path)


# Bad input.


@pytest.mark.parametrize(
  "options, line",
  [
    (dict(variant="XL/16"), "model.variant must be a variant, 'B/16' for one, got 'XL/16': there is no 'XL'"),
    (dict(variant="S/x"), "must end in a patch size"),
    (dict(variant="S/0"), "must end in a patch size"),
    (dict(hidden=3), "model.hidden is no key of the model mixer (did you mean 'hidden_dim'?)"),
    (dict(gelu="relu"), "model.gelu must be one of 'tanh', 'exact', got 'relu'"),
    (dict(dtype_mm="float16"), "model.dtype_mm must be one of 'float32', 'bfloat16'"),
    (dict(patch_size=0), "model.patch_size must be"),
    (dict(patch_size=(16, 16, 3)), "model.patch_size must be"),
    (dict(num_blocks="12"), "model.num_blocks must be a whole number in [1, 10000], got '12'"),
    (dict(tokens_mlp_dim=0), "model.tokens_mlp_dim must be a whole number from 1 on, got 0"),
    (dict(stoch_depth=1.0), "model.stoch_depth must be a number in [0, 1), got 1.0"),
  ],
)
def test_a_wrong_option_is_one_line(options, line):
  with pytest.raises(UserError) as e:
    mixer.Model(10, **options)
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_a_wrong_image_is_one_line():
  model = mixer.Model(10, **TINY)
  with pytest.raises(UserError, match=r"divisible by the patch size 8x8, got \[1, 36, 32, 3\]"):
    shapes(model, (1, 36, 32, 3))
  with pytest.raises(UserError, match=r"got \[32, 32, 3\]"):
    shapes(model, (32, 32, 3))
  params = random_like(shapes(model))
  with pytest.raises(UserError, match="has 8x8 patches, but the token-mixing MLPs were made for 16"):
    jax.eval_shape(model.apply, {"params": params}, jnp.zeros((1, 64, 64, 3)))
