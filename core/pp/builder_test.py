"""pp strings, keys and refusals, on NumPy batches: this file must pass where TensorFlow is not installed."""

import subprocess
import sys

import numpy as np
import pytest

from core.errors import UserError
from core.pp import builder, registry


def example(n=3):
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8),
    "label": np.arange(n),
    "_seed": np.arange(n) + 10,
    "_id": np.arange(n),
  }


def batched(pp, data=None):
  return builder.get_batched_fn(pp)(example() if data is None else data)


def test_calls_names_and_literals_are_read():
  assert builder.parse("a | b() | c(1, -2.5, 'x|y(', key=[None, (True, \"é\")])|\n d(x={'k': -1})") == [
    ("a", (), {}),
    ("b", (), {}),
    ("c", (1, -2.5, "x|y("), {"key": [None, (True, "é")]}),
    ("d", (), {"x": {"k": -1}}),
  ]


@pytest.mark.parametrize("pp", ["", "  ", "\n"])
def test_an_empty_string_is_the_identity(pp):
  data = example()
  assert batched(pp, data) == data


@pytest.mark.parametrize(
  "pp, words",
  [
    ("resise(3)", r"pp op 'resise' is unknown \(did you mean 'resize'\?\)"),
    ("resize(224", "cannot be read"),
    ("flip_lr||'|'", "is not an op"),
    ("flip_lr + flip_lr", "is not an op"),
    ("numpy.flip()", "is not an op"),
    ("'flip_lr'", "is not an op"),
    ("flip_lr(key=image)", "pp op flip_lr: 'image' is not a literal"),
    ("resize(2 * 112)", "pp op resize: '2 \\* 112' is not a literal"),
    ("keep(*'ab')", "pp op keep: .* is not a literal"),
    ("resize(**{'size': 3})", r"pp op resize: \*\*"),
    ("resize()", r"pp op resize: missing a required argument: 'size'; it is resize\(size, method='bilinear'"),
    ("resize(1, 'area', False, 4)", r"pp op resize: too many positional arguments; it is resize\("),
    ("resize(1, mthod='area')", r"pp op resize: got an unexpected keyword argument 'mthod'; it is resize\("),
    ("resize(1, method='areal')", r"pp op resize: method must be one of .*, got 'areal' \(did you mean 'area'\?\)"),
    ("resize('224')", r"pp op resize: size must be a whole number in \[1, 16384\] or \(.*\), got '224'"),
    ("resize((1, 2, 3))", r"pp op resize: size must be \(a whole number in .*\), got \(1, 2, 3\)"),
    ("resize((1, -2))", r"pp op resize: size\[1\] must be a whole number in \[1, 16384\], got -2"),
    ("central_crop(0)", "pp op central_crop: crop_size must be a whole number .* or None, got 0"),
    ("resize_small(2.5)", "pp op resize_small: smaller_size must be a whole number .*, got 2.5"),
    ("inception_crop(8, area_min=0)", r"area_min must be a number in \(0, 100\], got 0"),
    ("inception_crop(8, 50, 20)", "area_min, 50.0, must not exceed area_max, 20.0"),
    ("decode_jpeg_and_inception_crop(8, ratio_min=2)", "ratio_min, 2.0, must not exceed ratio_max, 1.33"),
    ("inception_crop(0)", "pp op inception_crop: size must be a whole number"),
    ("inception_crop(8, area_min='5')", r"pp op inception_crop: area_min must be a number in \(0, 100\], got '5'"),
    ("value_range('-1', 1)", "pp op value_range: vmin must be a number, got '-1'"),
    ("value_range(in_min=1e-30, in_max=1.1e-30, vmax=3e38)", "are too close to each other"),
    ("decode(2)", "pp op decode: channels must be one of 1, 3, 4, got 2"),
    ("decode(upright=1)", "pp op decode: upright must be True or False, got 1"),
    ("pad(2, mode='mirror')", "mode must be one of 'constant', 'reflect', 'symmetric', got 'mirror'"),
    ("pad(2, 'reflect', 7)", "value has no meaning with mode='reflect'"),
    ("vgg_value_range((1, 2), (1, 2, 3))", "mean and std are a number or one a channel"),
    ("vgg_value_range(1, 0)", "pp op vgg_value_range: std must be a number .*, got 0"),
    ("value_range(0, 1, 5, 5)", "in_min and in_max are both 5"),
    ("onehot('label', 10)", "pp op onehot: depth must be a whole number .*, got 'label'"),
    ("onehot(3, '_seed')", "'_seed' belongs to the pipeline"),
    ("choice(n=0, key='image')", "n must be 'single' or a whole number"),
    ("choice(inkey='image', key='a', outkey='b')", "key has no meaning beside inkey and outkey"),
    ("resize(8, inkey='image', key='a', outkey='b')", "key has no meaning beside inkey and outkey"),
    ("resize(8, key='_seed')", "pp op resize: key must be a key, got '_seed': keys that begin with _ belong"),
    ("copy('image', 'a\\nb')", "pp op copy: outkey must be a key, got"),
    ("keep", "pp op keep: wants at least one key"),
    ("reshape((0, 3))", r"new_shape must be sizes from 1 on, of which one may be -1, got \(0, 3\)"),
    ("reshape((-1, -1))", "new_shape must be sizes from 1 on"),
    ("choice", "wants key="),
    ("rename('_seed', 'seed')", "belongs to the pipeline"),
    ("randaug(magnitude='10')", "magnitude must be a number"),
    ("resize(8, size=8)", "pp op resize: multiple values for argument 'size'"),
    ("resize(8, antialias=True, antialias=False)", "pp op resize: antialias is given twice"),
  ],
)
def test_a_bad_string_is_refused_in_one_line(pp, words):
  with pytest.raises(UserError, match=words) as error:
    builder.get_batched_fn(pp)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "pp, words",
  [
    ("value_range(key='img')", "pp op value_range: no key 'img'; the example has: _id, _seed, image, label"),
    ("keep('image')|onehot(3, key='label')", "pp op onehot: no key 'label'; the example has: _id, _seed, image"),
    ("keep('labels')", "pp op keep: no key 'labels'"),
    ("copy('img', 'image2')", "pp op copy: no key 'img'"),
    ("rename('img', 'image2')", "pp op rename: no key 'img'"),
    ("drop('image', 'label')|resize(3)", "pp op resize: no key 'image'; the example has: _id, _seed"),
    ("onehot(2, key='label')", r"pp op onehot: labels outside \[0, 2\) under key 'label': 2"),
    ("random_crop(7)", "pp op random_crop: the crop is 7 x 7 and the image is smaller: 6 x 5"),
    ("central_crop(7)", "pp op central_crop: the crop is 7 x 7 and the image is smaller: 6 x 5"),
    ("squeeze_last_dim", r"pp op squeeze_last_dim: the last dimension must be 1; the value is uint8 \[6, 5, 3\]"),
    ("vgg_value_range(mean=(1, 2), std=(3, 4))", "mean and std are of 2 channels"),
    ("resize(3, key='label')", "pp op resize: an image is"),
    ("choice(n=9, key='image')", "fewer than 9 entries"),
  ],
)
def test_data_that_do_not_fit_are_refused_in_one_line(pp, words):
  with pytest.raises(UserError, match=words) as error:
    batched(pp)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name, op in registry.OPS.items() if op.random and "tokenize" not in name])
def test_a_random_op_without_a_seed_is_refused(name):
  arguments = {"random_crop": "3", "choice": "key='image'"}.get(name, "")
  fn = builder.get_batched_fn(f"{name}({arguments})")
  if fn is not None:
    with pytest.raises(UserError, match=f"pp op {name}: is random and there is no key '_seed'"):
      fn({"image": example()["image"]})


def test_keys_of_the_pipeline_pass_through():
  data = {**example(), "nested": {"a": {"b": np.zeros(3)}, "_c": np.ones(3)}, "_mask": {"m": np.ones(3)}}
  out = batched("flatten|copy('label', 'l2')|rename('l2', 'l3')|drop('label', '_id')|keep('l3', 'nested/a/b')", data)
  assert sorted(out) == ["_id", "_mask", "_seed", "l3", "nested/a/b"]
  assert out["_seed"] is data["_seed"]
  assert out["_mask"] is data["_mask"]
  np.testing.assert_array_equal(out["l3"], data["label"])
  assert sorted(batched("flatten(sep='.')", data)) == [
    "_id",
    "_mask",
    "_seed",
    "image",
    "label",
    "nested._c",
    "nested.a.b",
  ]


def test_the_input_is_not_changed():
  data = example()
  before = {key: value.copy() for key, value in data.items()}
  batched("flip_lr|pad(2)|random_crop(4)|value_range|onehot(9, key='label')|drop('label')", data)
  assert data.keys() == before.keys()
  for key, value in before.items():
    np.testing.assert_array_equal(data[key], value)


def test_key_inkey_and_outkey_choose_what_is_read_and_written():
  data = {**example(), "b": example()["image"][::-1]}
  out = batched("resize(2, inkey='b', outkey='small')|value_range(0, 1, key='b')", data)
  np.testing.assert_array_equal(out["image"], data["image"])
  assert out["small"].shape == (3, 2, 2, 3)
  np.testing.assert_allclose(out["b"], data["b"] / 255, rtol=1e-6)


def test_two_places_in_a_string_draw_differently():
  data = {"a": np.arange(100)[None].repeat(500, 0), "_seed": np.arange(500)}
  out = batched("choice(inkey='a', outkey='x')|choice(inkey='a', outkey='y')", data)
  assert np.mean(out["x"] == out["y"]) < 0.05


def test_the_example_of_the_registry_works(monkeypatch):
  monkeypatch.setattr(registry, "OPS", dict(registry.OPS))

  @registry.key_op()
  def darken(by=10):
    """Takes `by` grey levels away."""
    return registry.both(lambda image: image - by)

  @registry.op()
  def mean_of(a, b, outkey="mean"):
    return registry.both(lambda data: {**data, outkey: (data[a] + data[b]) / 2})

  @registry.key_op(random=True)
  def jitter(by=10.0):
    return registry.both(lambda image, rng: image + rng.uniform(-by, by)[:, None])

  @registry.key_op()
  def tensors_only():
    return lambda image: image

  data = {"a": np.full((2, 3), 50.0), "b": np.full((2, 3), 70.0), "_seed": np.arange(2)}
  out = batched("darken(20, key='a')|darken(inkey='b', outkey='c')|mean_of('a', 'b')|jitter(0.5, key='b')", data)
  assert (out["a"] == 30).all()
  assert (out["c"] == 60).all()
  assert (out["mean"] == 50).all()
  assert (abs(out["b"] - 70) <= 0.5).all()
  assert len(np.unique(out["b"])) == 2
  assert builder.get_batched_fn("darken|tensors_only") is None
  with pytest.raises(ValueError, match="registered twice"):
    registry.op()(darken)


def test_a_string_with_an_op_on_tensors_only_has_no_batched_form():
  assert builder.get_batched_fn("decode|resize(8)") is None
  assert builder.get_batched_fn("resize(8)") is not None
  assert builder.get_batched_fn("resize(8, antialias=True)") is None


def test_every_op_says_what_it_does():
  assert all(op.doc.split("\n")[0].endswith(".") for op in registry.OPS.values())


def test_batches_need_no_tensorflow():
  program = """
import sys
sys.modules["tensorflow"] = None  # Importing it fails.
import numpy as np
from core.errors import UserError
from core.pp import builder
pp = 'pad(1)|random_crop(8)|flip_lr|resize(16)|value_range(-1,1)|onehot(10, key="label", key_result="labels")'
data = dict(image=np.zeros((4, 8, 8, 1), np.uint8), label=np.arange(4), _seed=np.arange(4))
out = builder.get_batched_fn(pp + '|keep("image","labels")')(data)
assert out["image"].shape == (4, 16, 16, 1) and out["labels"].shape == (4, 10)
assert builder.get_batched_fn("decode|randaug|inception_crop(8)") is None
try:
  builder.get_preprocess_fn("decod")
except UserError as error:
  print(error)
"""
  run = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
  )
  assert run.returncode == 0, run.stderr
  assert "did you mean 'decode'" in run.stdout
