"""NFNets against the paper and closed forms; logits against timm's are in foreign/nfnet_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import nfnet, registry
from core.recipe.models.nfnet import VARIANTS
from core.testing import compilation
from core.testing.params import random_like, shapes, with_options

SMALL = dict(depth=(2,), width=(32,), stem_width=32, group_size=8, final_width=32)
TINY = dict(depth=(1, 2, 1, 1), width=(32, 32, 48, 64), stem_width=32, group_size=8, final_width=96)

quick_compilation = compilation.quick()


@pytest.fixture
def image():
  return np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)


# Names, shapes, sizes.


@pytest.mark.parametrize(
  "variant, millions",
  # Brock et al. 2021, table 3.
  [("F0", 71.5), ("F1", 132.6), ("F2", 193.8), ("F3", 254.9), ("F4", 316.1), ("F5", 377.2), ("F6", 438.4)],
)
def test_variants_have_the_numbers_of_parameters_in_the_paper(variant, millions):
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes(nfnet.Model(1000, variant=variant))))
  assert round(count / 1e6, 1) == millions


def test_parameters_have_the_names_that_the_module_tells():
  names = {name: leaf.shape for name, leaf in trees.flatten_with_names(shapes(nfnet.Model(10, variant="F0")))}
  assert names["stem_conv0/kernel"] == (3, 3, 3, 16)
  assert names["stage0_block0/conv0/kernel"] == (1, 1, 128, 128)
  assert names["stage2_block5/conv1b/kernel"] == (3, 3, 128, 768)  # Six groups of 128.
  assert names["stage3_block0/conv_shortcut/gain"] == (1536,)
  assert names["stage3_block2/se/fc0/kernel"] == (1536, 768)
  assert names["stage3_block2/skip_gain"] == ()
  assert names["final_conv/bias"] == (3072,)
  assert names["head/kernel"] == (3072, 10)
  assert not [name for name in names if "block1/conv_shortcut" in name]


def test_variants_come_with_their_dropout_and_options_override_them():
  assert [nfnet.Model(variant=name).options.dropout for name in VARIANTS] == [0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5]
  model = nfnet.Model(5, variant="F6", depth=[1, 1, 2, 1], dropout=0, name="img")
  assert (model.num_classes, model.options.depth, model.options.dropout, model.name) == (5, (1, 1, 2, 1), 0, "img")
  assert registry.get("nfnet") is nfnet


def test_every_variant_halves_its_images_five_times():
  for variant in VARIANTS.values():
    assert variant.train_size % 32 == variant.test_size % 32 == 0
    assert variant.train_size < variant.test_size


# Numbers.


@pytest.mark.parametrize("name, gelu", [("gelu", "tanh"), ("gelu", "exact"), ("silu", "tanh"), ("relu", "tanh")])
def test_activations_keep_the_variance_of_a_standard_normal(name, gelu):
  nodes, node_weights = np.polynomial.hermite_e.hermegauss(200)
  node_weights = node_weights / node_weights.sum()
  values = np.float64(nfnet.scaled_activation(name, gelu)(nodes.astype(np.float32)))
  mean = node_weights @ values
  assert abs(node_weights @ (values - mean) ** 2 - 1) < 0.01


def test_kernels_are_used_with_mean_0_and_the_norm_of_their_gain():
  rng = np.random.default_rng(0)
  kernel = rng.normal(3.0, 0.5, (3, 3, 8, 16)).astype(np.float32)
  gain = rng.uniform(0.5, 2, 16).astype(np.float32)
  used = np.float64(nfnet.standardize(kernel, gain))
  np.testing.assert_allclose(used.mean((0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(np.sqrt((used**2).sum((0, 1, 2))), gain, rtol=1e-5)
  np.testing.assert_array_equal(nfnet.standardize(jnp.ones((3, 3, 8, 16)), gain), 0)


def test_a_grouped_convolution_is_one_for_each_group(image):
  x = np.random.default_rng(2).normal(size=(2, 9, 7, 16)).astype(np.float32)
  conv = nfnet.ScaledStdConv(24, 3, stride=2, groups=2)
  params = random_like(jax.eval_shape(conv.init, jax.random.key(0), x)["params"])
  assert params["kernel"].shape == (3, 3, 8, 24)
  whole = conv.apply({"params": params}, x)
  alone = nfnet.ScaledStdConv(12, 3, stride=2)
  for group in range(2):
    part = {name: leaf[..., 12 * group : 12 * (group + 1)] for name, leaf in params.items()}
    expected = alone.apply({"params": part}, x[..., 8 * group : 8 * (group + 1)])
    np.testing.assert_allclose(whole[..., 12 * group : 12 * (group + 1)], expected, atol=1e-5)


def test_a_fresh_network_adds_alpha_squared_to_the_variance_with_each_block():
  """The claim of the paper's section 3, with all skip gains at 1: no layer grows or vanishes, without normalization."""
  model = nfnet.Model(depth=(4,), width=(128,), stem_width=64, group_size=32, final_width=128)
  rng = np.random.default_rng(0)

  def fresh(name, leaf):
    if name.endswith("kernel"):  # Compiling the model's own initializers would take most of this test's time.
      return rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
    return np.full(leaf.shape, 0.0 if name.endswith("bias") else 1.0, np.float32)

  params = trees.map_with_names(fresh, shapes(model))
  image = rng.normal(size=(4, 64, 64, 3)).astype(np.float32)
  _, out = jax.jit(model.apply)({"params": params}, image)
  variances = [float(jnp.var(out[f"stage0_block{i}"])) for i in range(4)]
  assert 0.9 < variances[0] < 1.15
  np.testing.assert_allclose(np.diff(variances), 0.2**2, rtol=0.25)
  assert 0.8 < jnp.var(out["pre_logits_2d"]) < 1.2


def test_the_expected_deviation_grows_within_a_stage_and_starts_anew_with_the_next():
  deviations = nfnet.expected_deviations((2, 4, 12, 6), alpha=0.2)
  assert list(deviations) == [(stage, i) for stage, blocks in enumerate((2, 4, 12, 6)) for i in range(blocks)]
  expected = {(0, 0): 1.0, (0, 1): 1.04, (1, 0): 1.08, (1, 1): 1.04, (1, 3): 1.12, (2, 0): 1.16, (2, 11): 1.44}
  for block, variance in expected.items():
    assert deviations[block] == pytest.approx(np.sqrt(variance))


def test_a_fresh_network_is_its_shortcuts(image):
  """Skip gains start at zero: residual branches add nothing, whatever is in them."""
  model = nfnet.Model(100, **SMALL)
  params = jax.jit(model.init)(jax.random.key(0), image)["params"]
  _, out = jax.jit(model.apply)({"params": params}, image)
  np.testing.assert_array_equal(out["stage0_block1"], out["stage0_block0"])
  start = {"bias": 0, "gain": 1, "skip_gain": 0}
  for name, leaf in trees.flatten_with_names(params):
    if (value := start.get(name.split("/")[-1])) is not None:
      np.testing.assert_array_equal(leaf, value, err_msg=name)
  np.testing.assert_allclose(np.std(params["stage0_block0"]["conv1"]["kernel"]), (3 * 3 * 8) ** -0.5, rtol=0.1)
  np.testing.assert_allclose(np.std(params["head"]["kernel"]), 0.01, rtol=0.1)
  zero_head = with_options(model, head_zeroinit=True)
  head = jax.jit(lambda key: zero_head.init(key, image)["params"]["head"])(jax.random.key(0))
  np.testing.assert_array_equal(head["kernel"], 0)


def test_intermediates_have_the_names_and_shapes_that_are_told(image):
  model = nfnet.Model(7, **TINY)
  logits, out = jax.eval_shape(model.apply, {"params": shapes(model)}, image)
  found = {name: leaf.shape for name, leaf in out.items()}
  assert found == {
    "stem": (2, 16, 16, 32),
    "stage0_block0": (2, 16, 16, 32),
    "stage1_block0": (2, 8, 8, 32),
    "stage1_block1": (2, 8, 8, 32),
    "stage2_block0": (2, 4, 4, 48),
    "stage3_block0": (2, 2, 2, 64),
    "pre_logits_2d": (2, 2, 2, 96),
    "pre_logits": (2, 96),
    "logits": (2, 7),
  }
  assert logits.shape == (2, 7)
  representation, _ = jax.eval_shape(model.clone(num_classes=None).apply, {"params": shapes(model)}, image)
  assert representation.shape == (2, 96)


def test_bfloat16_computes_in_it_and_ends_in_float32(image):
  model = nfnet.Model(7, **SMALL)
  params = random_like(shapes(model))
  exact, _ = jax.jit(model.apply)({"params": params}, image)
  half = with_options(model, dtype_mm="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}
  logits, out = jax.jit(half.apply)({"params": params}, image)
  assert logits.dtype == jnp.float32
  assert {leaf.dtype for name, leaf in out.items() if name != "logits"} == {jnp.dtype("bfloat16")}
  np.testing.assert_allclose(logits, exact, atol=0.05 * np.abs(exact).max())


def test_training_skips_whole_branches_of_examples_and_does_not_scale_those_that_stay():
  model = nfnet.Model(None, stoch_depth=0.9, **SMALL)
  params = random_like(shapes(model))
  image = np.repeat(np.random.default_rng(0).normal(size=(1, 16, 16, 3)), 64, axis=0).astype(np.float32)
  rngs = {"dropout": jax.random.key(0)}
  (trained, out), (_, still) = jax.jit(
    lambda params: (
      model.apply({"params": params}, image, train=True, rngs=rngs),
      model.apply({"params": params}, image),
    )
  )(params)
  # The rate grows from 0 at block 0 to 0.9 one block after the last: 0.45 at block 1.
  np.testing.assert_allclose(out["stage0_block0"], still["stage0_block0"], rtol=1e-4, atol=1e-5)
  before, after = out["stage0_block0"], out["stage0_block1"]
  skipped = np.array([np.array_equal(*pair) for pair in zip(before, after)])
  assert 18 < skipped.sum() < 40
  np.testing.assert_allclose(after[~skipped], still["stage0_block1"][~skipped], rtol=1e-3, atol=1e-4)
  assert trained.shape == (64, 32)


def test_dropout_is_of_what_the_head_reads(image):
  model = nfnet.Model(7, dropout=0.5, stoch_depth=0.0, **SMALL)
  params = random_like(shapes(model))
  apply = jax.jit(lambda key: model.apply({"params": params}, image, train=True, rngs={"dropout": key}))
  (first, out), (second, _) = apply(jax.random.key(0)), apply(jax.random.key(1))
  assert np.abs(first - second).max() > 1e-3
  kernel, bias = params["head"]["kernel"], params["head"]["bias"]
  np.testing.assert_allclose(
    jax.jit(model.apply)({"params": params}, image)[0], out["pre_logits"] @ kernel + bias, 1e-3
  )


# Weights and mistakes.


def test_a_saved_model_loads_as_it_was_and_a_head_may_stay_fresh(tmp_path):
  model = nfnet.Model(7, **TINY)
  params = random_like(shapes(model))
  path = str(tmp_path / "weights.npz")
  pretrained.save_params(path, params)
  jax.tree.map(np.testing.assert_array_equal, nfnet.load(shapes(model), path), params)
  other = random_like(shapes(nfnet.Model(3, **TINY)), spread=0.1)
  loaded = nfnet.load(other, path, dont_load=["head/.*"])
  np.testing.assert_array_equal(loaded["head"]["kernel"], other["head"]["kernel"])
  np.testing.assert_array_equal(loaded["final_conv"]["gain"], params["final_conv"]["gain"])
  with pytest.raises(UserError, match=r"not the weights of this model: it lacks stage2_block1/"):
    nfnet.load(shapes(nfnet.Model(7, **{**TINY, "depth": (1, 2, 2, 1)})), path)


@pytest.mark.parametrize(
  "options, line",
  [
    (dict(variant="F7"), "model.variant must be one of 'F0', 'F1', 'F2', 'F3', 'F4', 'F5', 'F6', got 'F7'"),
    (dict(variant="F0", dropuot=0.1), "model.dropuot is no key of the model nfnet (did you mean 'dropout'?)"),
    (dict(activation="swish"), "model.activation must be one of 'gelu', 'silu', 'relu', got 'swish'"),
    (dict(dtype_mm="float16"), "model.dtype_mm must be one of 'float32', 'bfloat16'"),
    (dict(depth=(1, 2)), "model.depth has 2 stages, and width has 4"),
    (dict(depth=()), "model.depth has 0 stages, and width has 4"),
    (dict(width=()), "model.width must have one stage or more"),
    (dict(depth=3), "model.depth must be a list of whole numbers in [1, 10000], got 3"),
    (dict(width=(256, 500, 1536, 1536)), "model.width 500 times bottleneck 0.5 is 250, no multiple of group_size 128"),
    (dict(stem_width=100), "model.stem_width must be a multiple of 8, got 100"),
    (dict(stoch_depth=1), "model.stoch_depth must be a number in [0, 1), got 1"),
    (dict(alpha=0), "model.alpha must be a number in (0, 1000000.0], got 0"),
    (dict(final_width=0), "model.final_width must be a whole number from 1 on, got 0"),
  ],
)
def test_a_mistake_is_refused_in_one_line(options, line):
  with pytest.raises(UserError) as e:
    nfnet.Model(7, **options)
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_an_image_without_a_batch_is_refused():
  model = nfnet.Model(7, **TINY)
  with pytest.raises(UserError, match=r"images must be \[batch, height, width, channels\], got \[64, 64, 3\]"):
    model.apply({"params": shapes(model)}, jnp.zeros((64, 64, 3)))
