"""The one place where TensorFlow Datasets are imported: only if used, and without a question to the network."""

import functools
from types import ModuleType

from core.import_tensorflow import import_tensorflow


@functools.cache
def import_tfds() -> ModuleType:
  """Returns the `tensorflow_datasets` module, which knows the builders of `core.data.builders`, too.

  It never asks the network here: data are prepared beforehand, by `tools/prepare_data`.
  """
  import_tensorflow()
  import tensorflow_datasets as tfds

  from core.data.builders import imagenet21k  # noqa: F401 (a builder is known once its class is defined)

  return tfds
