"""Makes tf.ckpt.* and tf_expected.npz: arrays as TensorFlow writes them, and the same in NumPy's format.

  python core/checkpoint/witness/generate_tf_checkpoint.py core/checkpoint/witness

with the project's own pins (TensorFlow 2.21.0). Many names with a long common beginning fill more than one block of the
index; the checkpoint is merged of two, and so has two data files.
"""

import sys

import numpy as np
import tensorflow as tf


def main(folder: str) -> None:
  rng = np.random.default_rng(0)
  first = {
    f"a/rather/long/common/beginning/layer_{i}/kernel": rng.normal(size=3).astype(np.float32) for i in range(200)
  }
  second = {
    "double": rng.normal(size=(2, 3)),
    "half": rng.normal(size=(2, 1, 2)).astype(np.float16),
    "int32": rng.integers(-9, 9, (4,)).astype(np.int32),
    "int64": rng.integers(-9, 9, (2, 2)),
    "uint8": rng.integers(0, 255, (5,)).astype(np.uint8),
    "bool": np.array([True, False, True]),
    "scalar": np.float32(1.5),
    "empty": np.zeros((0, 3), np.float32),
  }
  prefixes = []
  for i, arrays in enumerate((first, second | {"text": np.array([b"words", b""])})):
    prefixes.append(f"{folder}/part{i}")
    names = sorted(arrays)
    tensors = [tf.constant(arrays[name]) for name in names]
    tf.raw_ops.SaveV2(prefix=prefixes[-1], tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
  tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=f"{folder}/tf.ckpt")
  np.savez_compressed(f"{folder}/tf_expected.npz", **first, **second)


if __name__ == "__main__":
  main(sys.argv[1])
