"""Every op in graph mode inside tf.data: pure functions of the example and its seed, and its two forms alike."""

import jax
import numpy as np
import pytest
import tensorflow as tf

from core.errors import UserError
from core.pp import builder, registry
from core.pp.op_examples import CASES, N, examples, run_tf
from core.pp.rng import Rng

STRINGS = [pp for strings in CASES.values() for pp in strings]
RANDOM = [
  pp
  for name, strings in CASES.items()
  if registry.OPS[name].random
  for pp in strings
  if "tokenize" not in name or ("captions|" in pp and "sample_if_multi=False" not in pp)  # They draw among several.
]


def leaves(tree):
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def same(a, b):
  a, b = leaves(a), leaves(b)
  return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_every_op_has_a_case():
  assert set(CASES) == set(registry.OPS)


@pytest.mark.parametrize("pp", STRINGS)
def test_an_op_is_a_pure_function_of_the_example_and_its_seed(pp):
  data = examples()
  first = run_tf(pp, data)
  again = run_tf(pp, {key: jax.tree.map(lambda x: x[::-1], value) for key, value in data.items()}, parallel=2)
  assert all(map(same, first, reversed(again)))
  assert all(out["_seed"] == seed and out["_id"] == i for i, (out, seed) in enumerate(zip(first, data["_seed"])))


@pytest.mark.parametrize("pp", RANDOM)
def test_a_random_op_differs_from_seed_to_seed(pp):
  data = jax.tree.map(lambda x: x[:1].repeat(N, 0), examples())
  outputs = run_tf(pp, {**data, "_seed": np.arange(N)})
  contents = {
    tuple(np.asarray(leaf).tobytes() for path, leaf in leaves(out).items() if not path.startswith("['_"))
    for out in outputs
  }
  assert len(contents) > 1


@pytest.mark.parametrize("pp", [pp for pp in STRINGS if builder.get_batched_fn(pp)])
def test_the_batched_form_gives_what_the_tf_form_gives(pp):
  data = examples()
  together = leaves(builder.get_batched_fn(pp)(data))
  alone = [leaves(out) for out in run_tf(pp, data)]
  assert together.keys() == alone[0].keys()
  for key, values in together.items():
    want = [out[key] for out in alone]
    if values.dtype == object:
      text = lambda each: np.asarray(each, object).ravel().tolist()
      assert list(map(text, values)) == list(map(text, want))
    else:
      assert values.dtype == want[0].dtype
      np.testing.assert_array_equal(values, np.stack(want))


def test_draws_have_the_same_bits_in_tensorflow_and_numpy():
  draws = lambda rng: (
    rng.uniform(),
    rng.uniform(-3.0, 5.0),
    rng.integer(-5, 1000),
    rng.key(),
    rng.fold_in(3).uniform(count=6),
    rng.fold_in(2**31).fold_in(0).integer(0, 2**31 - 1),
  )
  seeds = np.concatenate([np.arange(5000), np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 5000)])
  graph = tf.autograph.experimental.do_not_convert(lambda seed: draws(Rng(seed)))
  in_tf = tf.data.Dataset.from_tensor_slices(seeds).map(graph).batch(len(seeds)).get_single_element()
  for a, b in zip(in_tf, draws(Rng(seeds)), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a.numpy(), b)


def test_sizes_that_are_asked_for_are_known_while_tracing():
  spec = {"image": tf.TensorSpec([], tf.string), "_seed": tf.TensorSpec([], tf.int64)}
  for pp, shape in {
    "decode|resize(8)": (8, 8, 3),
    "decode(1)|resize((8, 9))": (8, 9, 1),
    "decode|inception_crop(8)|flip_lr|randaug|vgg_value_range": (8, 8, 3),
    "decode_jpeg_and_inception_crop((8, 9))|randaug": (8, 9, 3),
    "decode|resize_small(9)|central_crop((8, 7))": (8, 7, 3),
    "decode|resize(9)|pad(2)|random_crop(8)": (8, 8, 3),
  }.items():
    traced = tf.function(builder.get_preprocess_fn(pp), autograph=False).get_concrete_function(spec)
    assert tuple(traced.structured_outputs["image"].shape) == shape, pp


@pytest.mark.parametrize("pp", RANDOM)
def test_a_random_op_without_a_seed_is_refused(pp):
  data = examples(1)
  del data["_seed"]
  with pytest.raises(UserError, match="is random and there is no key '_seed'"):
    run_tf(pp, data)
