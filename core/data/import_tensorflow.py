"""The one place where TensorFlow is imported for the input: quietly, on the host's CPU only, and only if used."""

import contextlib
import functools
import os
import sys
from types import ModuleType


@functools.cache
def import_tensorflow() -> ModuleType:
  """The `tensorflow` module, without its start-up messages; it sees no GPU and no TPU, which belong to JAX."""
  if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # JAX sets 1 where nothing is set.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  with contextlib.nullcontext() if "tensorflow" in sys.modules else _stderr_silenced():
    import tensorflow as tf
  tf.get_logger().setLevel("ERROR")
  for kind in ("GPU", "TPU"):
    # A program that has run TensorFlow ops before cannot change its devices any more; the default ones are fine then.
    with contextlib.suppress(RuntimeError):
      tf.config.set_visible_devices([], kind)
  return tf


@functools.cache
def import_tfds() -> ModuleType:
  """The `tensorflow_datasets` module, which knows the builders of `core.data.builders`, too.

  It never asks the network here: data are prepared beforehand, by `tools/prepare_data`.
  """
  import_tensorflow()
  import tensorflow_datasets as tfds

  from core.data.builders import imagenet21k  # noqa: F401 (a builder is known once its class is defined)

  return tfds


@contextlib.contextmanager
def _stderr_silenced():
  """Parts of TensorFlow print while they are loaded, before any log level counts; an ImportError still rises."""
  saved = os.dup(2)
  with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(saved, 2)
      os.close(saved)
