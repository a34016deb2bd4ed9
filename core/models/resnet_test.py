"""Both ResNets: `resnet` (pre-activation, BiT's) and `bit` (post-activation)."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import data_files, trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import bit, registry, resnet
from core.models.std_conv import standardize_weights
from core.testing import compilation
from core.testing.params import random_like, shapes, with_options

WITNESS = data_files.find("core/models/witness")
TINY = dict(width=0.5, depth=(2, 1))
BOTH = pytest.mark.parametrize("module", [resnet, bit], ids=["resnet", "bit"])

quick_compilation = compilation.quick()


def named(tree):
  return dict(trees.flatten_with_names(tree))


@pytest.fixture
def image():
  return np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


@BOTH
def test_parameters_have_the_published_names_and_shapes(module):
  tree = shapes(module.Model(7, depth=(1, 1)))
  lines = [f"{name} {leaf.shape}" for name, leaf in named(tree).items()]
  table = WITNESS / {resnet: "resnet.txt", bit: "bit.txt"}[module]
  assert sorted(lines) == sorted(table.read_text().splitlines())
  assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


@BOTH
def test_variants_are_depth_and_width(module):
  model = module.Model(5, variant="101x3", head_zeroinit=False)
  assert (model.num_classes, model.options.head_zeroinit) == (5, False)
  assert (model.options.depth, model.options.width) == (101, 3)
  assert (module.Model(variant="R50x1").options.depth, module.Model(variant="152").options.width) == (50, 1)
  assert module.Model(variant="50x1", width=2).options.width == 2
  assert module.Model(depth=[1, 2]).options.depth == (1, 2)
  tree = shapes(module.Model(variant="26x2"))
  units = sorted({tuple(name.split("/")[:2]) for name in named(tree) if re.match(r"block\d", name)})
  assert [block for block, _ in units] == [f"block{i}" for i in (1, 1, 2, 2, 3, 3, 4, 4)]
  assert tree["block4"][units[-1][1]]["conv3"]["kernel"].shape == (1, 1, 1024, 4096)


def test_the_registry_knows_both_and_the_name_in_published_configs():
  assert registry.get("resnet") is registry.get("bit_paper") is resnet
  assert registry.get("bit") is bit


# Numbers, against timm in PyTorch (witness/generate_mixer_resnet.py); sizes of images that no stride divides.


@BOTH
def test_logits_and_input_gradients_are_those_of_timm(module):
  path = str(WITNESS / {resnet: "resnet_timm.npz", bit: "bit_timm.npz"}[module])
  with np.load(path) as file:
    witness = {key: file[key] for key in ("image", "logits", "cotangent", "image_grad")}
  model = module.Model(7, **TINY)
  # resnet_timm.npz holds `params/resnet/...` in the layout of the paper's code, which timm read it from.
  params = module.load(shapes(model), path)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
  # So large that what is added to the deviation of a kernel, 1e-5 in `bit` and nothing in timm's, does not count.
  params = trees.from_names({name: 1e3 * x if "conv" in name else x for name, x in named(params).items()})

  @jax.jit
  def logits_and_grad(params, image, cotangent):
    logits, pullback = jax.vjp(lambda image: model.apply({"params": params}, image)[0], image)
    return logits, pullback(cotangent)[0]

  logits, image_grad = logits_and_grad(params, witness["image"], witness["cotangent"])
  np.testing.assert_allclose(logits, witness["logits"], atol=1e-4)
  np.testing.assert_allclose(image_grad, witness["image_grad"], atol=1e-4)


@BOTH
def test_the_head_starts_at_zero(module, image):
  model = module.Model(7, width=0.5, depth=(1,))
  other = with_options(model, head_zeroinit=False)

  @jax.jit
  def start(rng):
    return model.init_with_output(rng, image)[0], other.init(rng, image)["params"]["head"]["kernel"]

  (logits, out), other_kernel = start(jax.random.key(0))
  assert not logits.any()
  assert np.std(out["pre_logits"]) > 0.01
  assert other_kernel.any()


def test_each_post_activation_unit_starts_as_its_shortcut(image):
  model = bit.Model(7, width=0.5, depth=(2,))
  (_, deep), variables = jax.jit(model.init_with_output)(jax.random.key(0), image)
  params = variables["params"]
  assert not params["block1"]["unit2"]["gn3"]["scale"].any()
  del params["block1"]["unit2"]
  _, shallow = jax.jit(with_options(model, depth=(1,)).apply)({"params": params}, image)
  np.testing.assert_allclose(deep["block1"], shallow["block1"], atol=1e-6)


@BOTH
def test_intermediates_are_named_and_the_head_acts_on_every_place(module, image):
  model = module.Model(7, **TINY)
  params = random_like(shapes(model))
  logits, out = jax.jit(model.apply)({"params": params}, image)
  assert {name: leaf.shape for name, leaf in out.items()} == {
    "stem": (2, 8, 8, 32),
    "block1": (2, 8, 8, 128),
    "block2": (2, 4, 4, 256),
    "pre_logits_2d": (2, 4, 4, 256),
    "pre_logits": (2, 256),
    "logits_2d": (2, 4, 4, 7),
    "logits": (2, 7),
  }
  np.testing.assert_array_equal(logits, out["logits"])
  np.testing.assert_allclose(out["pre_logits_2d"].mean((1, 2)), out["pre_logits"], atol=1e-5)
  np.testing.assert_allclose(out["logits_2d"].mean((1, 2)), logits, atol=1e-4)
  params.pop("head")
  representation, headless = jax.jit(model.clone(num_classes=None).apply)({"params": params}, image)
  assert set(out) - set(headless) == {"logits", "logits_2d"}
  np.testing.assert_allclose(representation, out["pre_logits"], atol=1e-5)


def test_the_zeros_around_the_published_root_count_in_its_pooling():
  root = resnet.RootBlock(32)
  params = root.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  image = np.ones((1, 32, 32, 3), np.float32)
  kernel = standardize_weights(params["params"]["conv_root"]["kernel"], 1e-10)
  conv = nn.Conv(32, (7, 7), (2, 2), ((3, 3), (3, 3)), use_bias=False)
  features = conv.apply({"params": {"kernel": kernel}}, image)
  pooled = root.apply(params, image)
  assert (features[:, :2, :2].max((1, 2)) < 0).any()
  assert (pooled[:, 0, 0] >= 0).all()
  np.testing.assert_allclose(pooled[:, 3, 3], features[:, 5:8, 5:8].max((1, 2)), atol=1e-5)


def test_by_choice_the_root_pools_what_is_in_the_image_alone():
  image = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
  params = shapes(resnet.Model(7, **TINY, root_padding="-inf"))
  params = random_like(params)
  _, out = resnet.Model(7, **TINY, root_padding="-inf").apply({"params": params}, image)
  kernel = standardize_weights(params["root_block"]["conv_root"]["kernel"], 1e-10)
  conv = nn.Conv(32, (7, 7), (2, 2), ((3, 3), (3, 3)), use_bias=False)
  features = conv.apply({"params": {"kernel": kernel}}, image)
  expected = nn.max_pool(features, (3, 3), (2, 2), ((1, 1), (1, 1)))  # Which pads by -inf.
  np.testing.assert_allclose(out["stem"], expected, atol=1e-5)
  _, published = resnet.Model(7, **TINY).apply({"params": params}, image)
  np.testing.assert_allclose(
    published["stem"], np.where(_at_border(expected), np.maximum(expected, 0), expected), atol=1e-5
  )
  with pytest.raises(UserError, match=r"model\.root_padding is no key of the model bit"):
    bit.Model(7, root_padding="-inf")


def _at_border(pooled):
  """The first row and column, whose windows reach beyond an even image; at its end they do not."""
  found = np.zeros(pooled.shape, bool)
  found[:, 0] = found[:, :, 0] = True
  return found


def test_bit_is_flaxs_convolutions_and_norms_of_weights_divided_by_their_deviation(image):
  """A root and one unit, by hand from flax's own layers and weights that NumPy standardizes."""
  params = random_like(shapes(bit.Model(7, width=0.5, depth=(1,))))
  params = jax.tree.map(lambda x: 1e-4 * x if x.ndim == 4 else x, params)  # So that what is added counts.

  def conv(name, x, strides=(1, 1), of=params):
    kernel = np.asarray(of[name]["kernel"], np.float64)
    kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
    layer = nn.Conv(kernel.shape[-1], kernel.shape[:2], strides, use_bias=False)
    return layer.apply({"params": {"kernel": kernel.astype(np.float32)}}, x)

  def norm(name, x, of=params):
    return nn.GroupNorm(32).apply({"params": of[name]}, x)

  x = nn.max_pool(nn.relu(norm("gn_root", conv("conv_root", image, (2, 2)))), (3, 3), (2, 2), "SAME")
  unit = params["block1"]["unit1"]
  y = nn.relu(norm("gn1", conv("conv1", x, of=unit), unit))
  y = nn.relu(norm("gn2", conv("conv2", y, of=unit), unit))
  y = norm("gn3", conv("conv3", y, of=unit), unit)
  expected = nn.relu(norm("gn_proj", conv("conv_proj", x, of=unit), unit) + y)
  _, out = bit.Model(7, width=0.5, depth=(1,)).apply({"params": params}, image)
  np.testing.assert_allclose(out["pre_logits_2d"], expected, atol=1e-4 * np.abs(expected).max())


@BOTH
def test_bfloat16_halves_the_activations_and_keeps_logits_float32(module, image):
  exact = module.Model(7, **TINY)
  model = with_options(exact, dtype_mm="bfloat16")
  params = random_like(shapes(exact))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype("float32")}
  logits, out = jax.jit(model.apply)({"params": params}, image)
  assert {out[name].dtype.name for name in ("stem", "block1", "block2", "pre_logits_2d")} == {"bfloat16"}
  assert (out["pre_logits"].dtype, logits.dtype) == (jnp.float32, jnp.float32)
  expected, _ = jax.jit(exact.apply)({"params": params}, image)
  np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


@BOTH
def test_a_few_jitted_steps_of_descent_lower_the_loss(module, image):
  model = module.Model(7, width=0.5, depth=(1,))
  params = jax.jit(model.init)(jax.random.key(0), image)["params"]
  labels = jnp.array([2, 5])

  @jax.jit
  def step(params):
    loss = lambda params: -jax.nn.log_softmax(model.apply({"params": params}, image)[0])[jnp.arange(2), labels].mean()
    value, grads = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

  losses = []
  for _ in range(10):
    value, params = step(params)
    losses.append(float(value))
  np.testing.assert_allclose(losses[0], np.log(7), rtol=1e-6)
  assert losses[-1] < 0.5 * losses[0]


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


@BOTH
@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_a_saved_model_loads_as_it_was(module, saved, prefix):
  model = module.Model(7, **TINY)
  params = random_like(shapes(model))
  path = saved({prefix + name: leaf for name, leaf in named(params).items()})
  assert_same(module.load(shapes(model), path), params)


@pytest.mark.parametrize("prefix", ["resnet/", ""])
def test_the_layout_of_the_papers_code_loads(saved, prefix):
  model = resnet.Model(7, width=0.5, depth=(1, 11))
  params = random_like(shapes(model))
  older = {}
  for name, leaf in named(params).items():
    name = name.replace("conv_root", "standardized_conv2d").replace("conv_proj", "a/proj/standardized_conv2d")
    name = name.replace("norm-pre-head", "group_norm").replace("head/", "head/conv2d/")
    for number, letter in enumerate("abc", start=1):
      name = name.replace(f"conv{number}/", f"{letter}/standardized_conv2d/")
      name = name.replace(f"gn{number}/", f"{letter}/group_norm/")
    if "group_norm" in name:
      name, leaf = name.replace("scale", "gamma").replace("bias", "beta"), leaf.reshape(-1)
    older[prefix + name] = leaf[None, None] if name == "head/conv2d/kernel" else leaf
  assert f"{prefix}block2/unit01/a/proj/standardized_conv2d/kernel" in older
  assert f"{prefix}block2/unit11/c/group_norm/gamma" in older
  assert_same(resnet.load(shapes(model), saved(older)), params)


def test_bits_older_scales_of_four_axes_load(saved):
  model = bit.Model(7, **TINY)
  params = random_like(shapes(model))
  older = {
    name: leaf[None, None, None] if "/gn" in name or "gn_root" in name else leaf for name, leaf in named(params).items()
  }
  assert older["block1/unit1/gn3/scale"].ndim == 4
  assert_same(bit.load(shapes(model), saved(older)), params)


@BOTH
def test_a_head_of_another_size_keeps_its_fresh_value_if_told_so(module, saved):
  params = random_like(shapes(module.Model(21, **TINY)))
  fresh = random_like(shapes(module.Model(7, **TINY)), spread=0.1)
  path = saved(named(params))
  loaded = module.load(fresh, path, dont_load=["head/.*"])
  assert_same(loaded.pop("head"), fresh["head"])
  params.pop("head")
  assert_same(loaded, params)
  with pytest.raises(UserError, match=r"weights.npz: .*dont_load"):
    module.load(fresh, path)


def test_weights_of_the_other_resnet_or_depth_are_refused_by_name(saved):
  path = saved(named(random_like(shapes(bit.Model(7, **TINY)))))
  with pytest.raises(UserError, match=r"it lacks block1/unit01/.*; it has besides block1/unit1/"):
    resnet.load(shapes(resnet.Model(7, **TINY)), path)
  with pytest.raises(UserError, match=r"it lacks block1/unit3/"):
    bit.load(shapes(bit.Model(7, width=0.5, depth=(3, 1))), path)


# Bad input.


@BOTH
@pytest.mark.parametrize(
  "options, line",
  [
    (
      dict(variant="51x1"),
      "model.variant must be a variant, '50x1' for one, got '51x1': it is DEPTHxWIDTH, ",
    ),
    (dict(variant="50x0"), "model.variant must be a variant, '50x1' for one, got '50x0'"),
    (dict(variant="x1"), "model.variant must be a variant, '50x1' for one, got 'x1'"),
    (dict(dept=50), "(did you mean 'depth'?)"),
    (
      dict(depth=18),
      "model.depth must be one of 26, 50, 101, 152, 200 or a list of whole numbers in [1, 10000], got 18",
    ),
    (dict(depth="50"), "model.depth must be one of"),
    (dict(depth=()), "model.depth must have one block or more"),
    (dict(depth=(3, 0)), "model.depth[1] must be a whole number in [1, 10000], got 0"),
    (dict(width=0), "model.width must be a positive multiple of 0.5, got 0"),
    (dict(width=0.75), "model.width must be a positive multiple of 0.5, got 0.75"),
    (dict(width="1"), "model.width must be a positive multiple of 0.5, got '1'"),
    (dict(dtype_mm="float16"), "model.dtype_mm must be one of 'float32', 'bfloat16', got 'float16'"),
  ],
)
def test_a_wrong_option_is_one_line(module, options, line):
  with pytest.raises(UserError) as e:
    module.Model(10, **options)
  assert line in str(e.value)
  assert "\n" not in str(e.value)


@BOTH
def test_a_wrong_image_is_one_line(module):
  with pytest.raises(UserError, match=r"images must be \[batch, height, width, channels\], got \[32, 32, 3\]"):
    shapes(module.Model(10, **TINY), (32, 32, 3))
