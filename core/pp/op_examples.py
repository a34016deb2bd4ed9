"""Examples of every op: pp strings that use it, and data that those strings are for. The tests of all ops run them."""

import io
from typing import Any

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8
from PIL import Image

from core import data_files
from core.pp import builder

_WORDS = str(data_files.find("core/pp/vocabularies/digit_words.txt"))  # A text a line.

# For every op of this folder, strings that run it on `examples()`.
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
  "value_range": [
    "value_range",
    "value_range(0, 1, key='grey')",
    "value_range(1, -1, 50, 200, True)",
    "value_range(-1, 1, (0, 10, 20), [255, 200, 100], True)",
    "value_range(0, 1, 0, (9, 99), key='floats')",
  ],
  "clip_value_range": ["clip_value_range"],
  "vgg_value_range": ["vgg_value_range", "vgg_value_range(127.5, 60, key='grey')"],
  "onehot": [
    "onehot(7, key='label', key_result='labels')",
    "onehot(7, 'several')",
    "onehot(7, 'several2', multi=False, on=0.9, off=0.1)",
    "onehot(7, key='several', key_result='image', on=-1.0, off=1.0)",
  ],
  "lookup": [f"lookup({_WORDS!r}, inkey='text', outkey='number')", f"coco_captions|lookup({_WORDS!r}, key='captions')"],
  "clip_i1k_label_names": ["clip_i1k_label_names", "clip_i1k_label_names(inkey='several2', outkey='names')"],
  "keep": ["keep('image', 'label')", "keep('image', 'nothing')"],
  "drop": ["drop('image', 'png', 'jpeg', 'nothing')"],
  "copy": ["copy('image', 'image2')"],
  "rename": ["rename('image', 'image2')"],
  "squeeze_last_dim": ["squeeze_last_dim(key='grey')"],
  "flatten": ["flatten", "flatten(sep='.')", "flatten('nested')", "flatten(['nested', 'image'], '.')"],
  "setdefault": [
    "setdefault('label', 3)",
    "setdefault('new', ['a', 'b'])",
    "setdefault('nobody', 3)",
    "setdefault('nothing', '')",
  ],
  "strfmt": [
    "strfmt('{label} of {text}', outkey='prefix')",
    "strfmt('all the same')",
    "coco_captions|strfmt('{{}} {several}: {captions} {captions}', outkey='captions')",
  ],
  "choice": [
    "choice(inkey='image', outkey='row')",
    "choice(3, key='image')",
    "choice(4, key=['image', 'grey'])",
    "coco_captions|choice(inkey='captions', outkey='text')",
    "choice([2, 4], key='image', outkey='{key}_rows')",
  ],
  "choice_no_replacement": [
    "choice_no_replacement(inkey='image', outkey='row')",
    "coco_captions|choice_no_replacement(['captions', 'several'])",
  ],
  "pad_to_shape": [
    "pad_to_shape((20, None, 5), 7)",
    "pad_to_shape(4, -1, 'before', key='several')",
    "pad_to_shape((13, 8, 2), 0.5, where='both', key='floats')",
  ],
  "concat": [
    "concat(['image', 'grey'], 'both')",
    "concat(['image', 'image'], axis=0)",
    "coco_captions|concat(['captions', 'captions'])",
  ],
  "rag_tensor": ["rag_tensor(inkey='several', outkey='ragged')"],
  "reshape": ["reshape((-1, 3))", "reshape(352, key='grey')"],
  "tokenize": [
    "tokenize(8, model='digit_captions')",
    "tokenize(5, 'sticky', 'digit_captions', pad_value=1, empty='keep', key='text')",
    "coco_captions|tokenize(8, model='digit_captions', lower=False, inkey='captions')",
    "coco_captions|tokenize(8, model='digit_captions', sample_if_multi=False, inkey='captions')",
  ],
  "bert_tokenize": ["bert_tokenize(8, 'digit_words')", "coco_captions|bert_tokenize('digit_words', 6, key='captions')"],
  "lower": ["lower", "lower(unicode=True)", "coco_captions('text')|lower"],
  "canonicalize": ["canonicalize", "canonicalize(keep='--', inkey='text', outkey='bare')"],
  "render_text": ["render_text((16, 64))", "coco_captions|render_text(24, wrap='char', channels=1, key='captions')"],
  "render_unifont": ["render_unifont((16, 40), font='ascii', inkey='text')"],
  "get_single": ["coco_captions|get_single('captions')", "get_single('image', -2)"],
  "coco_captions": ["coco_captions", "coco_captions(outkey='texts')"],
}
N, HEIGHT, WIDTH = 20, 16, 22


def photo(height: int, width: int, seed: int = 0) -> UInt8[np.ndarray, "height width 3"]:
  """Makes an image of smooth colours with a little noise."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8))
  noise = rng.integers(-3, 4, (height, width, 3))
  return np.clip(np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int) + noise, 0, 255).astype(np.uint8)


def encoded(image: UInt8[np.ndarray, "height width 3"], **kwargs: Any) -> bytes:
  """Encodes an image as PIL does, `format="PNG"`."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, **kwargs)
  return buffer.getvalue()


def examples(n: int = N) -> dict[str, Any]:
  """Makes a batch of what the strings of `CASES` read: images, files, labels, texts, a nested dict."""
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
    "nobody": np.zeros((n, 0, 2), np.uint8),
    "nothing": np.zeros((n, 0), object),
    "captions": {"text": captions, "id": np.arange(3 * n).reshape(n, 3)},
    "_seed": rng.integers(-(2**63), 2**63 - 1, n),
    "_id": np.arange(n),
    "_epoch": np.arange(n) % 7,
  }


def run_tf(pp: str, data: dict[str, Any], parallel: int | None = None) -> list[dict[str, Any]]:
  """Runs a pp string in graph mode inside tf.data; returns the outputs, one dict an example."""
  dataset = tf.data.Dataset.from_tensor_slices(data)
  return list(dataset.map(builder.get_preprocess_fn(pp), num_parallel_calls=parallel).as_numpy_iterator())


def one_key(pp: str, image: Any, seed: int = 0) -> Any:
  """Returns what a pp string makes of the key `image` of one example."""
  (out,) = run_tf(pp, {"image": image[None], "_seed": np.array([seed])})
  return out["image"]
