"""Small generated datasets in TFDS's own layout, to stand in for a real one in tests: same features, random content."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.data.import_tensorflow import import_tfds
from core.recipe.evaluators_image_text import DATASETS
from core.testing import tiny_tfds

# Splits and sizes of every stand-in; more than one file a split, so that files are ordered and divided in earnest.
SPLITS = {"train": 96, "validation": 20, "test": 20, "full": 96, "all": 96}
_FILES = 3


def features_of(name: str) -> Any:
  """Returns the features that its builder declares for `name`: known without the data."""
  return import_tfds().builder(name).info.features


def write(
  data_dir: Path,
  name: str,
  features: Any = None,
  splits: Mapping[str, int] | None = None,
  *,
  make_example: Callable[[Any, np.random.Generator], Any] | None = None,
  seed: int = 0,
) -> None:
  """Writes a prepared dataset `name` of random examples into `data_dir`.

  Args:
    data_dir: what TFDS_DATA_DIR is to be.
    name: of the dataset.
    features: a `tfds.features.FeaturesDict`; those of the real dataset by default.
    splits: number of examples of each split.
    make_example: `fn(features, rng)`, the content of one; `example` by default.
    seed: of the content.
  """
  folder = _with_config(name) if features is None else name
  features = features_of(name) if features is None else features
  make_example = make_example or example
  rng = np.random.default_rng(seed)
  examples = {split: [make_example(features, rng) for _ in range(size)] for split, size in (splits or SPLITS).items()}
  shards = {split: [each[n::_FILES] for n in range(_FILES)] for split, each in examples.items()}
  tiny_tfds.write(data_dir, folder, features, shards)


def _with_config(name: str) -> str:
  """Returns `NAME/CONFIG` for the name of a dataset that has configs: TFDS opens the first of them."""
  config = import_tfds().builder(name).builder_config
  return f"{name}/{config.name}" if config and "/" not in name else name


def example(feature: Any, rng: np.random.Generator) -> Any:
  """Returns one random value of a TFDS feature, or a dict of them: images, labels, text, boxes, sequences, numbers."""
  tfds = import_tfds()
  f = tfds.features
  if isinstance(feature, f.FeaturesDict):
    return {key: example(each, rng) for key, each in feature.items()}
  if isinstance(feature, f.Image):
    return _image(feature, rng)
  if isinstance(feature, f.ClassLabel):
    return int(rng.integers(feature.num_classes))
  if isinstance(feature, f.Text):
    return " ".join(rng.choice(["a", "photo", "of", "the", "number", "seven", "cat"], size=5))
  if isinstance(feature, f.BBoxFeature):
    low, high = np.sort(rng.random((2, 2)), axis=0)
    return f.BBox(ymin=low[0], xmin=low[1], ymax=high[0], xmax=high[1])
  if isinstance(feature, f.Sequence):
    return [example(feature.feature, rng) for _ in range(2)]
  shape = tuple(size or 3 for size in feature.shape)
  dtype = np.dtype(feature.np_dtype)
  if dtype.kind in "OSU":
    return np.full(shape, b"words")[()] if shape else "words"
  return (rng.random(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)).astype(dtype)


def _image(feature: Any, rng: np.random.Generator) -> Any:
  """Returns random pixels, as a file where the feature is a photo."""
  height, width, channels = (size or default for size, default in zip(feature.shape, (48, 40, 3)))
  pixels = rng.integers(0, 256, (height, width, channels)).astype(feature.np_dtype)
  if feature.np_dtype != np.uint8 or channels != 3:
    return pixels
  from PIL import Image

  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG" if feature.shape[0] else "JPEG")
  file.seek(0)
  return file


def datasets_of(config: Any) -> Sequence[str]:
  """Returns the names of the TFDS datasets that a config reads, by its `data` entries and its zero-shot data sets."""
  names = set()

  def visit(node: Any) -> None:
    if not isinstance(node, Mapping):
      return
    if isinstance(node.get("name"), str) and "split" in node and node.get("source", "tfds") == "tfds":
      names.add(node["name"])
    names.update(DATASETS[name].data.name for name in node.get("dataset_names", ()))
    for value in node.values():
      visit(value)

  visit(config.to_dict())
  return sorted(names - {"digits"})
