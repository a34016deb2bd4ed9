"""Against the papers' tables, and against PyTorch's counter over timm's models (witness/generate_mixer_resnet.py)."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from core import data_files
from core.models import registry, sizes, towers
from core.recipe.models import mixer, nfnet, vit

HERE = data_files.find("core/models")


def measure(family, variant, pixels=224, num_classes=1000, **options):
  model = registry.get(family).Model(num_classes, variant=variant, **options)
  return sizes.measure(model, (1, pixels, pixels, 3))


# What is counted.


def count(fn, *shapes):
  return sizes.multiply_adds(jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


def test_products_count_once_for_each_multiplication():
  assert count(lambda a, b: a @ b, (3, 4), (4, 5)) == 3 * 4 * 5
  assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 4), (2, 4, 5)) == 2 * 3 * 4 * 5
  conv = lambda groups, strides: (
    lambda x, kernel: jax.lax.conv_general_dilated(
      x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )
  )
  assert count(conv(1, (2, 2)), (2, 8, 8, 4), (3, 3, 4, 6)) == 2 * 4 * 4 * 6 * 3 * 3 * 4
  assert count(conv(2, (1, 1)), (2, 8, 8, 4), (3, 3, 2, 6)) == 2 * 8 * 8 * 6 * 3 * 3 * 2


def test_control_flow_counts_as_often_as_it_runs():
  product = lambda x: x @ x
  assert count(jax.jit(product), (4, 4)) == 4**3
  assert count(jax.checkpoint(product), (4, 4)) == 4**3
  assert count(lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0], (4, 4)) == 5 * 4**3
  branches = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, product, x)
  assert count(branches, (4, 4)) == 2 * 4**3
  assert count(lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x + 1, x), (4, 4)) == 0
  with pytest.raises(ValueError, match="how often it runs is not known"):
    count(lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 0, product, x), (4, 4))


def test_what_no_result_needs_is_not_counted():
  class WithIntermediates(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x), {"unused": nn.Dense(1000)(x)}

  assert sizes.measure(WithIntermediates(), (2, 5)) == sizes.Size(6 * 3 + 6 * 1000, 2 * 5 * 3)


def test_scan_changes_no_size():
  plain, scanned = (measure("vit", "Ti/16", 64, scan=scan) for scan in (False, True))
  assert plain == scanned


# Against the papers.


@pytest.mark.parametrize(
  "variant, params, gflops",
  [
    # Zhai et al. 2022 (Scaling Vision Transformers), table 2.
    ("Ti/16", 5.5, 2.5),
    ("S/32", 22, 2.3),
    ("S/16", 22, 9.2),
    ("B/32", 87, 8.7),
    ("B/16", 86, 35.1),
    ("L/16", 303, 122.9),
    ("g/14", 1011, 533.1),
    ("G/14", 1843, 965.3),
  ],
)
def test_vits_have_the_sizes_of_the_paper(variant, params, gflops):
  measured = measure("vit", variant, num_classes=None, scan=True, pool_type="tok")
  # They round in either direction, and 87.5 once to 87.
  assert abs(measured.params / 1e6 - params) < 0.6
  # Their FLOPs are two a multiply-add. What else they count or leave out is not told: within 1 %, or as they round.
  assert abs(2 * measured.multiply_adds / 1e9 - gflops) < max(0.015 * gflops, 0.05)


@pytest.mark.parametrize(
  "variant, params",
  [("S/32", 19), ("S/16", 18), ("B/32", 60), ("B/16", 59), ("L/32", 206), ("L/16", 207), ("H/14", 431)],
)
def test_mixers_have_the_sizes_of_the_paper(variant, params):
  # Tolstikhin et al. 2021, table 1: at 224 px, without the head.
  assert round(measure("mixer", variant, num_classes=None).params / 1e6) == params


@pytest.mark.parametrize(
  "variant, pixels, params, gflops",
  [
    # Brock et al. 2021, table 1: a multiply-add is one FLOP; at the size of the test images.
    ("F0", 256, 71.5, 12.38),
    ("F1", 320, 132.6, 35.54),
    ("F2", 352, 193.8, 62.59),
    ("F3", 416, 254.9, 114.76),
    ("F4", 512, 316.1, 215.24),
    ("F5", 544, 377.2, 289.76),
    ("F6", 576, 438.4, 377.28),
  ],
)
def test_nfnets_have_the_sizes_of_the_paper(variant, pixels, params, gflops):
  measured = measure("nfnet", variant, pixels)
  assert (round(measured.params / 1e6, 1), round(measured.multiply_adds / 1e9, 2)) == (params, gflops)


# Against timm and PyTorch.


def timm_name(family, variant):
  vit = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}
  name, _, patch = variant.partition("/")
  return {
    "vit": f"vit_{vit.get(name)}_patch{patch}_224",
    "mixer": f"mixer_{name.lower()}{patch}_224",
    "resnet": f"resnetv2_{variant}_bit",
    "nfnet": f"dm_nfnet_{variant.lower()}",
  }[family]


WITNESS = json.loads((HERE / "witness" / "sizes_timm.json").read_text())
IN_TIMM = [
  (family, variant)
  for family in ("vit", "mixer", "resnet", "nfnet")
  for variant in sizes.VARIANTS[family]
  if timm_name(family, variant) in WITNESS
]


def test_every_model_that_timm_was_asked_for_is_compared():
  assert {timm_name(*case) for case in IN_TIMM} == set(WITNESS) - {"made_by"}


@pytest.mark.parametrize("family, variant", IN_TIMM)
def test_models_have_the_sizes_of_those_of_timm(family, variant):
  expected = WITNESS[timm_name(family, variant)]
  options = dict(scan=True, pool_type="tok") if family == "vit" else {}
  measured = measure(family, variant, expected["size"], **options)
  assert measured.multiply_adds == expected["multiply_adds"]
  if family == "vit":  # Their class token has a position of its own; ours and the published ones have none.
    width = {"Ti": 192, "S": 384, "B": 768, "L": 1024, "H": 1280, "g": 1408, "G": 1664}[variant.split("/")[0]]
    expected["params"] -= width
  assert measured.params == expected["params"]


# The table.


@pytest.mark.parametrize("family", sizes.VARIANTS)
def test_the_readme_has_the_table_that_the_code_gives(family):
  readme = (HERE / "README.md").read_text().splitlines()
  assert [line for line in readme if line.startswith(f"| {family} |")] == sizes.table(family)


@pytest.mark.parametrize("family", sizes.TEXT_VARIANTS)
def test_the_readme_has_the_table_of_text_towers_that_the_code_gives(family):
  lines = (HERE / "README.md").read_text().splitlines()
  table = lines[lines.index(sizes.TEXT_HEAD[0]) :]
  assert [line for line in table if line.startswith(f"| {family} |")] == sizes.text_table(family)


@pytest.mark.parametrize(
  "family, variant, tokens", [(family, *row[:2]) for family, rows in sizes.TEXT_VARIANTS.items() for row in rows]
)
def test_a_text_towers_products_are_those_of_the_formula(family, variant, tokens):
  """A token meets 4 d^2 + 2 d m weights in each of the blocks, and every token twice: scores, and their sum."""
  model = registry.get(family).Model(variant=variant)
  width, mlp_dim = model.options.width, model.options.mlp_dim
  per_block = tokens * (4 * width**2 + 2 * width * mlp_dim) + 2 * tokens**2 * width
  assert sizes.measure(model, (1, tokens), jnp.int32).multiply_adds == model.options.depth * per_block


def test_the_readme_has_a_table_of_every_family_and_no_other():
  _, head, lines = (HERE / "README.md").read_text().partition("\n".join(sizes.HEAD))
  assert head
  families = {line.split("|")[1].strip() for line in lines.strip().splitlines()}
  assert families == set(sizes.VARIANTS)
  assert {id(registry.get(family)) for family in families} == {id(module) for module in towers.IMAGE.values()}


def test_variants_of_the_table_are_all_that_the_families_have():
  for family, variants in (("vit", vit.VARIANTS), ("mixer", mixer.VARIANTS), ("nfnet", nfnet.VARIANTS)):
    assert {variant.split("/")[0] for variant in sizes.VARIANTS[family]} == set(variants)
