"""The one place where TensorFlow Datasets are imported: only if used, and without a question to the network."""

import functools
from types import ModuleType
from typing import Any

from core.import_tensorflow import import_tensorflow

_FEATURES = ("tensorflow_datasets.", "core.", "projects.")  # Where classes of features may come from.


@functools.cache
def import_tfds() -> ModuleType:
  """Returns the `tensorflow_datasets` module, which knows the builders of `core.data.builders`, too.

  It never asks the network here: data are prepared beforehand, by `tools/prepare_data`.
  """
  import_tensorflow()
  import tensorflow_datasets as tfds

  from core.data.builders import imagenet21k  # noqa: F401 (a builder is known once its class is defined)

  _refuse_foreign_features(tfds.features.FeatureConnector)
  return tfds


def _refuse_foreign_features(connector: Any) -> None:
  """Makes TFDS import the class that a dataset's features.json names only if it is TFDS's or this repository's own.

  It would import any module that is there, and importing is running it.
  """
  of_name = connector.cls_from_name

  def checked(_: type, name: str) -> type:
    if not name.startswith(_FEATURES):
      raise ValueError(f"features.json names {name[:100]!r}, no class of TFDS or of this repository")
    return of_name(name)

  connector.cls_from_name = classmethod(checked)
