"""Makes bert_release/: the weights of a tiny BERT in the form of the original release, written by TensorFlow itself.

  python core/models/witness/generate_bert_release.py core/models/witness/text_hf.npz core/models/witness/bert_release

with the project's own pins. The weights are those of `bert` in text_hf.npz, under the names and in the layouts in which
github.com/google-research/bert defines its variables; beside them what a training leaves in such a checkpoint: the
pooler, heads of the pre-training, an optimizer's moments and the number of steps. Written with TensorFlow 2.21.0.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf


def variables(state_dict: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  named = {}
  for name, array in state_dict.items():
    name = "bert/" + name.replace(".", "/").replace("layer/", "layer_")
    if "_embeddings/" in name:
      named[name.removesuffix("/weight")] = array
    elif "LayerNorm" in name:
      named[name.replace("LayerNorm/weight", "LayerNorm/gamma").replace("LayerNorm/bias", "LayerNorm/beta")] = array
    else:
      named[name.replace("dense/weight", "dense/kernel").replace("/weight", "/kernel")] = (
        array.T if name.endswith("weight") else array
      )
  first = "bert/encoder/layer_0/attention/self/query/kernel"
  return named | {
    "cls/predictions/output_bias": np.zeros(50, np.float32),
    "cls/seq_relationship/output_weights": np.zeros((2, 24), np.float32),
    "cls/seq_relationship/output_bias": np.zeros(2, np.float32),
    f"{first}/adam_m": np.ones((24, 24), np.float32),
    f"{first}/adam_v": np.ones((24, 24), np.float32),
    "global_step": np.int64(1_000_000),
  }


def main(source: str, folder: str) -> None:
  with np.load(source) as file:
    prefix = "bert/state_dict/"
    state_dict = {name.removeprefix(prefix): np.float32(file[name]) for name in file if name.startswith(prefix)}
  named = variables(state_dict)
  Path(folder).mkdir(exist_ok=True)
  names = sorted(named)
  tf.raw_ops.SaveV2(
    prefix=f"{folder}/bert_model.ckpt",
    tensor_names=names,
    shape_and_slices=[""] * len(names),
    tensors=[tf.constant(named[name]) for name in names],
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
