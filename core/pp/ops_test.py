"""Every op against PIL, NumPy or jax.image, in graph mode inside tf.data, and its two forms against each other."""

import io

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scipy import stats

from core.errors import UserError
from core.pp import builder, registry
from core.pp.rng import Rng

# For every op, strings that run it on `examples()`.
CASES = {
  "decode": ["decode(inkey='png', outkey='image')", "decode(1, precise=True, inkey='jpeg', outkey='image')"],
  "decode_jpeg_and_inception_crop": ["decode_jpeg_and_inception_crop(9, inkey='jpeg', outkey='image')"],
  "inception_crop": ["inception_crop((7, 8))", "inception_crop(5, 50, 100, 'area', key='grey')"],
  "random_crop": ["random_crop((9, 11))", "random_crop(4, key='grey')"],
  "central_crop": ["central_crop", "central_crop((9, 10))", "central_crop(3, key='grey')"],
  "resize": [
    "resize(8)",
    "resize((31, 45))",
    "resize(7, inkey='floats', outkey='image')",
    "resize((40, 3), key='grey')",
    "resize(8, 'bicubic', True)",
  ],
  "resize_small": ["resize_small(10)", "resize_small(33, 'bilinear', key='grey')"],
  "resize_long": ["resize_long(10)"],
  "flip_lr": ["flip_lr", "flip_lr(key='grey')"],
  "randaug": ["randaug", "randaug(1, 15, key='grey')"],
  "pad": ["pad(2)", "pad((3, 1), value=7)", "pad(2, 'reflect', key='grey')", "pad(2, mode='symmetric')"],
  "value_range": ["value_range", "value_range(0, 1, key='grey')", "value_range(1, -1, 50, 200, True)"],
  "vgg_value_range": ["vgg_value_range", "vgg_value_range(127.5, 60, key='grey')"],
  "onehot": [
    "onehot(7, key='label', key_result='labels')",
    "onehot(7, 'several')",
    "onehot(7, 'several2', multi=False, on=0.9, off=0.1)",
    "onehot(7, key='several', key_result='image', on=-1.0, off=1.0)",
  ],
  "keep": ["keep('image', 'label')"],
  "drop": ["drop('image', 'png', 'jpeg')"],
  "copy": ["copy('image', 'image2')"],
  "rename": ["rename('image', 'image2')"],
  "squeeze_last_dim": ["squeeze_last_dim(key='grey')"],
  "flatten": ["flatten", "flatten('.')"],
  "choice": [
    "choice(inkey='image', outkey='row')",
    "choice(3, key='image')",
    "choice(4, key=['image', 'grey'])",
    "coco_captions|choice(inkey='captions', outkey='text')",
  ],
  "reshape": ["reshape((-1, 3))", "reshape(352, key='grey')"],
  "tokenize": [
    "tokenize(8, model='digit_captions')",
    "tokenize(5, 'sticky', 'digit_captions', pad_value=1, empty='keep', key='text')",
    "coco_captions|tokenize(8, model='digit_captions', lower=False, inkey='captions')",
  ],
  "bert_tokenize": ["bert_tokenize(8, 'digit_words')", "coco_captions|bert_tokenize('digit_words', 6, key='captions')"],
  "lower": ["lower", "lower(unicode=True)", "coco_captions('text')|lower"],
  "canonicalize": ["canonicalize", "canonicalize(keep='--', inkey='text', outkey='bare')"],
  "render_text": ["render_text((16, 64))", "coco_captions|render_text(24, wrap='char', channels=1, key='captions')"],
  "render_unifont": ["render_unifont((16, 40), font='ascii', inkey='text')"],
  "get_single": ["coco_captions|get_single('captions')", "get_single('image', -2)"],
  "coco_captions": ["coco_captions", "coco_captions(outkey='texts')"],
}
STRINGS = [pp for strings in CASES.values() for pp in strings]
RANDOM = [pp for name, strings in CASES.items() if registry.OPS[name].random for pp in strings]
N, HEIGHT, WIDTH = 20, 16, 22


def photo(height, width, seed=0):
  """Smooth colours with a little noise."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
  noise = rng.integers(-3, 4, (height, width, 3))
  return np.clip(np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int) + noise, 0, 255).astype(np.uint8)


def encoded(image, **kwargs):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, **kwargs)
  return buffer.getvalue()


def examples(n=N):
  rng = np.random.default_rng(1)
  images = np.stack([photo(HEIGHT, WIDTH, seed) for seed in range(n)])
  captions = [(f"A RED seven -- {i}.", "ÄÉ Σ_犬", "" if i % 2 else "two  digits") for i in range(n)]
  captions = np.array([[each.encode() for each in some] for some in captions], object)
  return {
    "image": images,
    "grey": images[..., :1].copy(),
    "floats": rng.normal(size=(n, 11, 5, 2)).astype(np.float32),
    "label": rng.integers(0, 7, n),
    "several": rng.integers(-1, 7, (n, 3)).astype(np.int32),
    "several2": rng.integers(0, 7, (n, 3)),
    "jpeg": np.array([encoded(image, format="JPEG", quality=95) for image in images], object),
    "png": np.array([encoded(image, format="PNG") for image in images], object),
    "nested": {"a": {"b": np.arange(n)}},
    "text": captions[:, 0],
    "captions": {"text": captions, "id": np.arange(3 * n).reshape(n, 3)},
    "_seed": rng.integers(-(2**63), 2**63 - 1, n),
    "_id": np.arange(n),
  }


def run_tf(pp, data, parallel=None):
  """The outputs, one dict an example, of the TF form in graph mode."""
  dataset = tf.data.Dataset.from_tensor_slices(data)
  return list(dataset.map(builder.get_preprocess_fn(pp), num_parallel_calls=parallel).as_numpy_iterator())


def leaves(tree):
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def same(a, b):
  a, b = leaves(a), leaves(b)
  return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def one_key(pp, image, seed=0):
  (out,) = run_tf(pp, {"image": image[None], "_seed": np.array([seed])})
  return out["image"]


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
  tolerance = dict(rtol=0, atol=1e-4) if pp.startswith("resize") else dict(rtol=0, atol=0)
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
      np.testing.assert_allclose(values, np.stack(want), **tolerance)


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


# Decoding.


def test_png_decodes_to_its_pixels():
  data = examples()
  for out, image in zip(run_tf("decode(inkey='png', outkey='d')", data), data["image"]):
    np.testing.assert_array_equal(out["d"], image)


def test_precise_jpeg_decodes_as_in_pil():
  data = examples()
  for out, jpeg in zip(run_tf("decode(precise=True, inkey='jpeg', outkey='d')", data), data["jpeg"]):
    np.testing.assert_allclose(out["d"], np.asarray(Image.open(io.BytesIO(jpeg))), rtol=0, atol=1)


# Crops. Red and green tell each pixel's place.


def ramp(height, width):
  image = np.zeros((height, width, 3), np.uint8)
  image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
  return image


def boxes(crops):
  """(left, top, width, height) of crops of `ramp`; each must be a slice of it."""
  found = []
  for crop in crops:
    left, top = map(int, crop[0, 0, :2])
    np.testing.assert_array_equal(crop, ramp(256, 256)[top : top + crop.shape[0], left : left + crop.shape[1]])
    found.append((left, top, crop.shape[1], crop.shape[0]))
  return np.array(found)


def crops_of(pp, image, n):
  fn = builder.get_preprocess_fn(pp)
  dataset = tf.data.Dataset.range(n).map(lambda seed: fn({"image": tf.constant(image), "_seed": seed})["image"])
  return list(dataset.as_numpy_iterator())


def test_a_random_crop_is_everywhere_alike():
  found = boxes(crops_of("random_crop((60, 50))", ramp(63, 54), 2000))
  assert set(map(tuple, found[:, 2:])) == {(50, 60)}
  places = np.unique(found[:, :2], axis=0, return_counts=True)[1]
  assert len(places) == 5 * 4
  assert stats.chisquare(places).pvalue > 1e-4


def test_an_inception_crop_keeps_to_its_areas_and_ratios_and_uses_them():
  found = boxes(crops_of("inception_crop(None, 20, 60)", ramp(120, 160), 1000))
  area, ratio = found[:, 2] * found[:, 3] / (120 * 160), found[:, 2] / found[:, 3]
  assert area.min() > 0.19 and area.max() < 0.61  # noqa: PT018
  assert area.min() < 0.22 and area.max() > 0.58  # noqa: PT018
  assert ratio.min() > 0.73 and ratio.max() < 1.36  # noqa: PT018
  assert ratio.min() < 0.77 and ratio.max() > 1.3  # noqa: PT018
  assert len(np.unique(found[:, :2], axis=0)) > 500


def test_the_fused_crop_is_the_crop_of_the_decoded_jpeg():
  jpeg = encoded(photo(120, 160), format="JPEG", quality=95)
  crops = crops_of("decode_jpeg_and_inception_crop(area_min=10, ratio_min=0.5, ratio_max=2)", jpeg, 40)
  image = tf.io.decode_jpeg(jpeg).numpy()
  for crop in crops:
    # libjpeg smooths colour across the border of what it decodes, so the outermost pixels may differ.
    inner = crop[4:-4, 4:-4]
    windows = np.lib.stride_tricks.sliding_window_view(image, inner.shape[:2], axis=(0, 1))
    corners = windows[..., [0, 0, -1, -1], [0, -1, 0, -1]] == inner[[0, 0, -1, -1], [0, -1, 0, -1]].T
    places = np.argwhere(corners.all((-1, -2)))
    assert any(np.array_equal(image[y : y + inner.shape[0], x : x + inner.shape[1]], inner) for y, x in places)
  ratios = [crop.shape[1] / crop.shape[0] for crop in crops]
  assert min(ratios) < 0.75
  assert max(ratios) > 1.4


@pytest.mark.parametrize("size, top, left", [((9, 11), 3, 5), ((16, 22), 0, 0), ((15, 21), 0, 0)])
def test_a_central_crop_is_the_middle(size, top, left):
  image = photo(HEIGHT, WIDTH)
  crop = one_key(f"central_crop({size})", image)
  np.testing.assert_array_equal(crop, image[top : top + size[0], left : left + size[1]])


def test_a_central_crop_without_size_is_the_largest_square_of_images_of_any_size():
  sizes = [(16, 22), (30, 10), (5, 5)]
  data = {"image": np.array([encoded(ramp(*size), format="PNG") for size in sizes], object)}
  found = boxes(out["image"] for out in run_tf("decode|central_crop", data))
  assert found.tolist() == [[3, 0, 16, 16], [0, 10, 10, 10], [0, 0, 5, 5]]


# Resizing.


@pytest.mark.parametrize("size", [(8, 8), (31, 45), (16, 22), (7, 40)])
def test_bilinear_is_that_of_jax(size):
  image = photo(HEIGHT, WIDTH).astype(np.float32)
  want = jax.image.resize(image, (*size, 3), "bilinear", antialias=False)
  np.testing.assert_allclose(one_key(f"resize({size})", image), want, atol=2e-3)
  np.testing.assert_allclose(one_key(f"resize({size})", image.astype(np.uint8)), want, atol=0.501)


@pytest.mark.parametrize(
  "method, pil", [("bilinear", Image.BILINEAR), ("lanczos3", Image.LANCZOS), ("bicubic", Image.BICUBIC)]
)
def test_antialiased_resizing_is_that_of_pil(method, pil):
  image = photo(64, 90)
  want = np.asarray(Image.fromarray(image).resize((29, 24), pil)).astype(int)
  got = one_key(f"resize((24, 29), '{method}', antialias=True)", image)
  assert got.dtype == np.uint8
  assert np.abs(got - want).max() <= 1


def test_overshoot_is_clipped():
  image = np.zeros((16, 16, 1), np.uint8)
  image[:, 8:] = 255
  assert (np.diff(one_key("resize(64, 'bicubic')", image)[0, :, 0].astype(int)) >= 0).sum() >= 62


def test_nearest_and_area_are_those_of_numpy():
  image = photo(HEIGHT, WIDTH)
  np.testing.assert_array_equal(one_key("resize((48, 66), 'nearest')", image), image.repeat(3, 0).repeat(3, 1))
  blocks = image.reshape(8, 2, 11, 2, 3).mean((1, 3))
  np.testing.assert_allclose(one_key("resize((8, 11), 'area')", image), blocks, atol=0.501)


@pytest.mark.parametrize(
  "pp, shape",
  [
    ("resize_small(8)", (8, 11)),
    ("resize_small(24)", (24, 33)),
    ("resize_long(11)", (8, 11)),
    ("resize_long(3)", (2, 3)),
  ],
)
def test_the_aspect_is_kept_and_shrinking_averages_areas(pp, shape):
  image = photo(HEIGHT, WIDTH)
  got = one_key(pp, image)
  assert got.shape == (*shape, 3)
  if shape == (8, 11):
    np.testing.assert_allclose(got, image.reshape(8, 2, 11, 2, 3).mean((1, 3)), atol=0.501)


# Flips, padding, values.


def test_half_the_images_are_mirrored():
  image = photo(HEIGHT, WIDTH)
  flips = [np.array_equal(crop, image[:, ::-1]) for crop in crops_of("flip_lr", image, 1000)]
  keeps = [np.array_equal(crop, image) for crop in crops_of("flip_lr", image, 1000)]
  assert sum(flips) + sum(keeps) == 1000
  assert stats.binomtest(sum(flips), 1000).pvalue > 1e-4


@pytest.mark.parametrize("mode", ["constant", "reflect", "symmetric"])
def test_padding_is_that_of_numpy(mode):
  image = photo(HEIGHT, WIDTH)
  want = np.pad(image, [(2, 2), (5, 5), (0, 0)], mode)
  np.testing.assert_array_equal(one_key(f"pad((2, 5), '{mode}')", image), want)


def test_values_are_mapped_linearly():
  image = photo(HEIGHT, WIDTH)
  image[0, 0], image[0, 1] = 0, 255
  got = one_key("value_range(-1, 1)", image)
  np.testing.assert_allclose(got, image / 127.5 - 1, atol=2e-7)
  assert (got.min(), got.max(), got.dtype) == (-1, 1, np.float32)
  clipped = one_key("value_range(0, 10, 50, 200, clip_values=True)", image)
  np.testing.assert_allclose(clipped, np.clip((image - 50.0) / 15, 0, 10), atol=2e-6)
  mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
  np.testing.assert_allclose(one_key("vgg_value_range", image), (image / 255 - mean) / std, atol=2e-6)


# Labels.


@pytest.mark.parametrize(
  "arguments, labels, want",
  [
    ("", 2, [0, 0, 1, 0]),
    ("on=0.9, off=0.1", 0, [0.9, 0.1, 0.1, 0.1]),
    ("", [1, 3, 1, -1], [0, 1, 0, 1]),
    ("", [-1, -1], [0, 0, 0, 0]),
    ("", [], [0, 0, 0, 0]),
    ("multi=False", [1, 3], [[0, 1, 0, 0], [0, 0, 0, 1]]),
  ],
)
def test_onehot(arguments, labels, want):
  data = {"labels": np.array([labels], np.int32)}
  got = run_tf(f"onehot(4, {arguments})", data)[0]["labels"]
  np.testing.assert_array_equal(got, np.float32(want))
  np.testing.assert_array_equal(builder.get_batched_fn(f"onehot(4, {arguments})")(data)["labels"][0], got)


@pytest.mark.parametrize(
  "arguments, labels", [("", 4), ("", -1), ("", [0, 4]), ("", [-2, 0]), ("multi=False", [-1, 0]), ("", 2**40)]
)
def test_a_label_outside_num_classes_is_refused_by_value_depth_and_key(arguments, labels):
  data = {"cls": np.array([labels])}
  wrong = next(label for label in np.atleast_1d(labels) if not 0 <= label < 4)
  pp = f"onehot(4, 'cls', {arguments})"
  with pytest.raises(tf.errors.InvalidArgumentError, match=rf"labels outside \[0, 4\) under key cls:.*{wrong}"):
    run_tf(pp, data)
  with pytest.raises(UserError, match=rf"pp op onehot: labels outside \[0, 4\) under key 'cls': {wrong}"):
    builder.get_batched_fn(pp)(data)


# Choices and refusals.


def test_fewer_entries_than_asked_for_are_all_taken_only_if_allowed():
  data = {"x": np.arange(8).reshape(2, 4), "_seed": np.arange(2)}
  np.testing.assert_array_equal([out["x"] for out in run_tf("choice(9, 'x', fewer_ok=True)", data)], data["x"])
  np.testing.assert_array_equal(builder.get_batched_fn("choice(9, 'x', fewer_ok=True)")(data)["x"], data["x"])
  with pytest.raises(UserError, match="pp op choice: fewer than 9 entries under 'x': 4"):
    run_tf("choice(9, 'x')", data)
  lengths = tf.data.Dataset.range(9).map(lambda n: {"x": tf.range(n), "_seed": n})  # Known only when they come by.
  with pytest.raises(tf.errors.InvalidArgumentError, match="pp op choice: fewer than 9 entries under x"):
    list(lengths.map(builder.get_preprocess_fn("choice(9, 'x')")))


def test_choices_are_uniform_different_and_in_order():
  data = {
    "x": np.arange(6)[None].repeat(4000, 0),
    "y": np.arange(6)[None].repeat(4000, 0) * 10,
    "_seed": np.arange(4000),
  }
  one = builder.get_batched_fn("choice(key='x')")(data)["x"]
  assert stats.chisquare(np.bincount(one, minlength=6)).pvalue > 1e-4
  many = builder.get_batched_fn("choice(3, key=['x', 'y'])")(data)
  assert (np.diff(many["x"], axis=1) > 0).all()
  np.testing.assert_array_equal(many["x"] * 10, many["y"])
  sets = np.unique(many["x"], axis=0, return_counts=True)[1]
  assert len(sets) == 20
  assert stats.chisquare(sets).pvalue > 1e-4


@pytest.mark.parametrize(
  "pp, words",
  [
    ("value_range(key='img')", "pp op value_range: no key 'img'; the example has: _id"),
    ("keep('labels')", "pp op keep: no key 'labels'"),
    ("decode|randaug(key='floats')", "pp op decode: no key"),
    ("randaug(key='floats')", "pp op randaug: wants a uint8 image"),
    ("random_crop(17)", "pp op random_crop: the crop is 17 x 17 and the image is smaller: 16 x 22"),
    ("resize(8, key='label')", "pp op resize: an image is"),
    ("vgg_value_range(key='grey')", "mean and std are of 3 channels"),
    ("squeeze_last_dim", "the last dimension must be 1"),
    ("drop('_seed')|flip_lr", None),
  ],
)
def test_examples_that_do_not_fit_are_refused_while_tracing(pp, words):
  data = examples(1)
  if words is None:  # The pipeline's keys cannot be dropped.
    assert "_seed" in run_tf(pp, data)[0]
    return
  if pp.startswith("decode"):
    del data["image"]
  with pytest.raises(UserError, match=words):
    run_tf(pp, data)


@pytest.mark.parametrize("pp", RANDOM)
def test_a_random_op_without_a_seed_is_refused(pp):
  data = examples(1)
  del data["_seed"]
  with pytest.raises(UserError, match="is random and there is no key '_seed'"):
    run_tf(pp, data)


@pytest.mark.parametrize("op", ["random_crop", "central_crop"])
def test_an_image_smaller_than_its_crop_is_refused_when_it_comes_by(op):
  data = {"image": np.array([encoded(ramp(9, 9), format="PNG")], object), "_seed": np.arange(1)}
  with pytest.raises(tf.errors.InvalidArgumentError, match=f"pp op {op}: the crop is 10 x 8 and the image is smaller"):
    run_tf(f"decode|{op}((10, 8))", data)
