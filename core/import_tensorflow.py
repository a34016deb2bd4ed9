"""The one place where TensorFlow is imported: quietly, on the host's CPU only, and only if used."""

import contextlib
import functools
import os
import sys
from types import ModuleType


@functools.cache
def import_tensorflow() -> ModuleType:
  """Returns the `tensorflow` module, without its start-up messages; it sees no GPU and no TPU, which belong to JAX."""
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


@contextlib.contextmanager
def _stderr_silenced():
  """Silences what TensorFlow prints as it is loaded, before any log level counts; an ImportError still rises."""
  saved = os.dup(2)
  with open(os.devnull, "wb") as nowhere:
    os.dup2(nowhere.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(saved, 2)
      os.close(saved)
