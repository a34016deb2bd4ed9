import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import data_files, trees
from core.errors import UserError
from core.models import registry, vit
from core.recipe.models.vit import VARIANTS
from core.testing import compilation
from core.testing.params import random_like, shapes, with_options

WITNESS = data_files.find("core/models/witness")
POOL_TYPES = ("gap", "map", "tok", "0", "none")
TINY = dict(patch_size=8, width=32, depth=2, mlp_dim=64, num_heads=2)

quick_compilation = compilation.quick()


def named(tree):
  return dict(trees.flatten_with_names(tree))


@pytest.fixture
def image():
  return np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


# Names, shapes, sizes.


@pytest.mark.parametrize(
  "table, options",
  [
    ("vit_ti16_map.txt", dict(depth=1, pool_type="map", rep_size=True)),
    ("vit_ti16_tok_scan.txt", dict(depth=2, pool_type="tok", scan=True)),
  ],
)
def test_parameters_have_the_published_names_and_shapes(table, options):
  tree = shapes(vit.Model(7, variant="Ti/16", **options), (1, 64, 64, 3))
  lines = [f"{name} {leaf.shape}" for name, leaf in trees.flatten_with_names(tree)]
  assert sorted(lines) == sorted((WITNESS / table).read_text().splitlines())
  assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}


def count(variant, **options):
  tree = shapes(vit.Model(variant=variant, scan=True, **options), (1, 224, 224, 3))
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  "variant, num_classes, millions",
  [
    ("Ti/16", 1000, "5.7"),  # Touvron et al. 2021 (DeiT), table 1.
    ("S/16", 1000, "22"),
    ("B/16", 1000, "86.6"),  # Dosovitskiy et al. 2021, table 1, has 86, 307 and 632.
    ("L/16", 1000, "304"),
    ("H/14", 1000, "632"),
    ("g/14", None, "1011"),  # Zhai et al. 2022, table 2.
    ("G/14", None, "1843"),
  ],
)
def test_variants_have_the_numbers_of_parameters_in_the_papers(variant, num_classes, millions):
  ours = count(variant, num_classes=num_classes, pool_type="tok") / 1e6
  assert f"{ours:.{len(millions.partition('.')[2])}f}" == millions


@pytest.mark.parametrize(
  "variant, pool_type, timm_name",
  [
    ("Ti/16", "tok", "vit_tiny_patch16_224"),
    ("S/16", "tok", "vit_small_patch16_224"),
    ("B/16", "tok", "vit_base_patch16_224"),
    ("L/16", "tok", "vit_large_patch16_224"),
    ("H/14", "tok", "vit_huge_patch14_224"),
    ("g/14", "tok", "vit_giant_patch14_224"),
    ("G/14", "tok", "vit_gigantic_patch14_224"),
    ("So400m/14", "map", "vit_so400m_patch14_siglip_224"),
  ],
)
def test_variants_have_as_many_parameters_as_in_timm(variant, pool_type, timm_name):
  with np.load(WITNESS / "vit_timm.npz") as file:
    assert count(variant, pool_type=pool_type) == file[f"count/{timm_name}"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_one_of_the_published_shapes(variant):
  width, depth, mlp_dim, num_heads = VARIANTS[variant]
  model = vit.Model(variant=f"{variant}/14")
  options = model.options
  assert (options.width, options.depth, options.mlp_dim, options.num_heads) == (width, depth, mlp_dim, num_heads)
  assert options.patch_size == (14, 14)
  assert width % num_heads == 0


def test_options_override_the_variant():
  model = vit.Model(5, variant="S/16", depth=3, patch_size=8, name="img")
  assert (model.num_classes, model.name) == (5, "img")
  assert (model.options.width, model.options.depth, model.options.patch_size) == (384, 3, (8, 8))
  assert vit.Model(variant="B").options.patch_size == (16, 16)
  assert vit.Model(patch_size=[8, 4]).options.patch_size == (8, 4)


def test_parameters_start_as_published():
  model = vit.Model(100, variant="mu/16", width=128, pool_type="tok", head_zeroinit=False)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))["params"]
  std = lambda leaf: float(np.std(leaf))
  np.testing.assert_allclose(std(params["pos_embedding"]), 1 / np.sqrt(128), rtol=0.05)
  np.testing.assert_allclose(std(params["embedding"]["kernel"]), 1 / np.sqrt(16 * 16 * 3), rtol=0.05)
  np.testing.assert_allclose(std(params["head"]["kernel"]), 1 / np.sqrt(128), rtol=0.05)
  query = params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]["query"]["kernel"]
  np.testing.assert_allclose(np.abs(query).max(), np.sqrt(6 / (128 + 128)), rtol=0.02)
  assert not params["cls"].any()
  assert not params["head"]["bias"].any()


# Numbers, against timm in PyTorch (witness/generate_vit.py).


@pytest.mark.parametrize(
  "pool_type, scan, unused",
  [("gap", False, ["cls", "MAP.*"]), ("tok", True, ["MAP.*"]), ("map", False, ["cls"])],
)
def test_logits_and_input_gradients_are_those_of_timm(pool_type, scan, unused):
  path = str(WITNESS / "vit_timm.npz")
  model = vit.Model(7, pool_type=pool_type, scan=scan, **TINY)
  # What the pooling does not use is not in the model, so it is named as not to be loaded.
  params = vit.load(shapes(model), path, dont_load=unused)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
  with np.load(path) as file:
    witness = {key: file[f"{pool_type}/{key}"] for key in ("logits", "cotangent", "image_grad")}
    image = file["image"]

  @jax.jit
  def logits_and_grad(params, image, cotangent):
    logits, pullback = jax.vjp(lambda image: model.apply({"params": params}, image)[0], image)
    return logits, pullback(cotangent)[0]

  logits, image_grad = logits_and_grad(params, image, witness["cotangent"])
  np.testing.assert_allclose(logits, witness["logits"], atol=1e-4)
  np.testing.assert_allclose(image_grad, witness["image_grad"], atol=1e-4)


def test_patches_are_row_major_and_may_be_oblong(image):
  model = vit.Model(None, pool_type="none", posemb="sincos2d", **{**TINY, "patch_size": (8, 4)})
  params = random_like(shapes(model))
  _, out = jax.jit(model.apply)({"params": params}, image)
  patches = image.reshape(2, 4, 8, 8, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 8, -1)
  expected = patches @ params["embedding"]["kernel"].reshape(-1, 32) + params["embedding"]["bias"]
  np.testing.assert_allclose(out["stem"], expected, atol=1e-4)
  position = out["with_posemb"] - out["stem"].reshape(2, 32, 32)
  omega = 10_000 ** -(np.arange(8) / 7)
  x, y = 3, 2  # Column 3 of row 2: token 2 * 8 + 3.
  expected = np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])
  np.testing.assert_allclose(position[0, y * 8 + x], expected, atol=1e-5)


# Options.


@pytest.mark.parametrize("pool_type, rep_size", [*((pool, 24) for pool in POOL_TYPES), ("gap", False), ("gap", True)])
def test_pooling_and_representation_give_the_named_intermediates(pool_type, rep_size, image):
  model = vit.Model(7, pool_type=pool_type, rep_size=rep_size, **{**TINY, "depth": 1})
  params = random_like(shapes(model))
  logits, out = jax.jit(model.apply)({"params": params}, image)
  tokens = 17 if pool_type == "tok" else 16
  rep = {False: 32, True: 32, 24: 24}[rep_size]
  pooled = (2, 16) if pool_type == "none" else (2,)
  assert {name: leaf.shape for name, leaf in out.items() if name != "encoder"} == {
    "stem": (2, 4, 4, 32),
    "with_posemb": (2, 16, 32),
    "encoded": (2, tokens, 32),
    "head_input": (*pooled, 32),
    "pre_logits": (*pooled, rep),
    "pre_logits_2d": (2, 4, 4, rep),
    "logits": (*pooled, 7),
    "logits_2d": (2, 4, 4, 7),
  }
  assert set(out["encoder"]) == {"block00", "pre_ln"}
  assert set(out["encoder"]["block00"]) == {"sa", "+sa", "mlp", "+mlp"}
  np.testing.assert_array_equal(logits, out["logits"])

  encoded = np.asarray(out["encoded"])
  if pool_type != "map":
    expected = {"gap": encoded.mean(1), "tok": encoded[:, 0], "0": encoded[:, 0], "none": encoded}[pool_type]
    np.testing.assert_allclose(out["head_input"], expected, atol=1e-5)
  if rep_size:
    dense = np.asarray(out["head_input"]) @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"]
    np.testing.assert_allclose(out["pre_logits"], np.tanh(dense), atol=1e-5)
  expected = np.asarray(out["pre_logits_2d"]) @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(out["logits_2d"], expected, atol=1e-4)


def test_without_classes_the_output_is_the_representation(image):
  model = vit.Model(pool_type="map", **{**TINY, "depth": 1})
  params = random_like(shapes(model))
  output, out = jax.jit(model.apply)({"params": params}, image)
  assert "head" not in params
  assert "logits" not in out
  np.testing.assert_array_equal(output, out["head_input"])


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_acts_in_training_alone_and_by_its_rng(scan, image):
  model = vit.Model(7, dropout=0.3, scan=scan, **{**TINY, "depth": 1})
  params = random_like(shapes(model))

  @jax.jit
  def run(params, image, rngs):
    apply = lambda **kw: model.apply({"params": params}, image, **kw)[0]
    return *(apply(train=True, rngs={"dropout": rng}) for rng in rngs), apply()

  first, other, evaluated = run(params, image, jax.random.split(jax.random.key(0)))
  assert not np.allclose(first, other, atol=1e-2)
  assert not np.allclose(first, evaluated, atol=1e-2)
  plain = vit.Model(7, scan=scan, **{**TINY, "depth": 1})
  np.testing.assert_allclose(evaluated, jax.jit(plain.apply)({"params": params}, image)[0], atol=1e-4)


def test_bfloat16_halves_the_activations_and_keeps_norms_and_logits_float32(image):
  exact = vit.Model(7, pool_type="map", rep_size=True, **{**TINY, "depth": 1})
  model = with_options(exact, dtype_mm="bfloat16")
  params = random_like(shapes(exact), spread=0.1)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype("float32")}
  logits, out = jax.jit(model.apply)({"params": params}, image)
  dtypes = {name: leaf.dtype.name for name, leaf in named(out).items()}
  assert {dtypes[f"encoder/block00/{part}"] for part in ("sa", "+sa", "mlp", "+mlp")} == {"bfloat16"}
  assert (dtypes["stem"], dtypes["with_posemb"], dtypes["pre_logits"]) == ("bfloat16",) * 3
  assert (dtypes["encoded"], dtypes["logits"]) == ("float32", "float32")
  expected, _ = jax.jit(exact.apply)({"params": params}, image)
  np.testing.assert_allclose(logits, expected, atol=0.03 * np.abs(expected).max())


def test_gradients_agree_with_finite_differences(image):
  moved = ("embedding/kernel", "pos_embedding", "Transformer/encoderblock_0/LayerNorm_1/scale", "MAPHead_0/probe")
  with jax.enable_x64(True):
    model = vit.Model(7, pool_type="map", **{**TINY, "depth": 1})
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), random_like(shapes(model), spread=0.1))
    rng = np.random.default_rng(2)
    directions = [
      trees.map_with_names(lambda name, leaf, key=key: rng.normal(size=leaf.shape) * (name == key), params)
      for key in moved
    ]
    # Float32 activations would drown the differences (the softmax stays float32, hence the size of the steps).
    model = with_options(model, dtype_mm="float64")
    loss = jax.jit(jax.value_and_grad(lambda params: (model.apply({"params": params}, image)[0] ** 2).sum()))
    _, grads = loss(params)
    for direction in directions:
      moved_by = lambda h, direction=direction: jax.tree.map(lambda p, d: p + h * d, params, direction)
      difference = (loss(moved_by(5e-3))[0] - loss(moved_by(-5e-3))[0]) / 1e-2
      slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
      np.testing.assert_allclose(difference, slope, rtol=5e-3)


def test_a_few_jitted_steps_of_descent_lower_the_loss(image):
  model = vit.Model(7, variant="mu/16", pool_type="tok", scan=True)
  params = jax.jit(model.init)(jax.random.key(0), image)["params"]
  labels = jnp.array([2, 5])

  @jax.jit
  def step(params):
    loss = lambda params: -jax.nn.log_softmax(model.apply({"params": params}, image)[0])[jnp.arange(2), labels].mean()
    value, grads = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

  losses = []
  for _ in range(10):
    value, params = step(params)
    losses.append(float(value))
  np.testing.assert_allclose(losses[0], np.log(7), rtol=1e-6)
  assert losses[-1] < 0.5 * losses[0]


# Bad input.


@pytest.mark.parametrize(
  "options, line",
  [
    (dict(variant="SS/16"), "model.variant must be a variant, 'S/16' for one, got 'SS/16': there is no 'SS'"),
    (dict(variant="So400/14"), "(did you mean 'So400m'?)"),
    (dict(variant="S/x"), "must end in a patch size"),
    (dict(variant="S/"), "must end in a patch size"),
    (dict(variant="S/0"), "must end in a patch size"),
    (dict(pool_typ="gap"), "model.pool_typ is no key of the model vit (did you mean 'pool_type'?)"),
    (dict(pool_type="mean"), "model.pool_type must be one of 'gap', 'map', 'tok', '0', 'none', got 'mean'"),
    (dict(posemb="rope"), "model.posemb must be one of 'learn', 'sincos2d', got 'rope'"),
    (dict(remat_policy="everything"), "model.remat_policy must be one of 'none', 'nothing_saveable'"),
    (dict(dtype_mm="float16"), "model.dtype_mm must be one of 'float32', 'bfloat16'"),
    (dict(patch_size=(16, 16, 3)), "model.patch_size must be"),
    (dict(patch_size=0), "model.patch_size must be"),
    (dict(patch_size="16"), "model.patch_size must be"),
    (dict(variant=16), "model.variant must be a variant, 'S/16' for one, got 16"),
    (dict(depth="12"), "model.depth must be a whole number in [1, 10000], got '12'"),
    (dict(depth=10**5), "model.depth must be a whole number in [1, 10000], got 100000"),
    (dict(num_heads=0), "model.num_heads must be a whole number from 1 on, got 0"),
    (dict(mlp_dim=4.0), "model.mlp_dim must be a whole number from 1 on, got 4.0"),
    (dict(rep_size=-1), "model.rep_size must be"),
    (dict(width=100, num_heads=3), "model.width must be a multiple of num_heads, 3, got 100"),
    (dict(width=6, num_heads=2, posemb="sincos2d"), "model.width must be a multiple of 4"),
    (dict(dropout=1.0), "model.dropout must be a number in [0, 1)"),
    (dict(dropout="0.1"), "model.dropout must be a number in [0, 1)"),
    (dict(gelu="erf"), "model.gelu must be one of 'tanh', 'exact', got 'erf'"),
    (dict(registers=-1), "model.registers must be a whole number that is not negative, got -1"),
    (dict(registers=True), "model.registers must be a whole number that is not negative, got True"),
    (dict(norm_eps=0.0), "model.norm_eps must be a number above 0, got 0.0"),
    (dict(qkv_bias="no"), "model.qkv_bias must be True or False, got 'no'"),
    (dict(fc_norm=True, pool_type="tok"), "model.fc_norm goes with pool_type='gap', got 'tok'"),
  ],
)
def test_a_wrong_option_is_one_line(options, line):
  with pytest.raises(UserError) as e:
    vit.Model(10, **options)
  assert line in str(e.value)
  assert "\n" not in str(e.value)


def test_a_wrong_image_is_one_line():
  model = vit.Model(10, variant="mu/16")
  with pytest.raises(UserError, match=r"divisible by the patch size 16x16, got \[1, 40, 32, 3\]"):
    shapes(model, (1, 40, 32, 3))
  with pytest.raises(UserError, match=r"got \[32, 32, 3\]"):
    shapes(model, (32, 32, 3))
  params = random_like(shapes(model))
  with pytest.raises(UserError, match="has 4x4 patches, but pos_embedding was made for 4"):
    jax.eval_shape(model.apply, {"params": params}, jnp.zeros((1, 64, 64, 3)))


def test_the_registry_knows_vit_and_lists_what_exists():
  assert registry.get("vit") is vit
  with pytest.raises(UserError, match=r"^config\.model_name: there is no 'vitt' \(did you mean 'vit'\?\)"):
    registry.get("vitt")
