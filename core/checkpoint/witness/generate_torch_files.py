"""Makes zip.pth, legacy.pth and expected.npz: a training state saved by PyTorch in its two forms, and the arrays in it.

python -m venv ENV && ENV/bin/pip install torch==2.13.0 numpy==2.4.6
ENV/bin/python core/checkpoint/witness/generate_torch_files.py core/checkpoint/witness
"""

import argparse
import collections
import sys
from pathlib import Path

import numpy as np
import torch

SEED = 50


def tensors() -> collections.OrderedDict:
  generator = torch.Generator().manual_seed(SEED)
  random = lambda *shape: torch.randn(*shape, generator=generator)
  shared = random(6, 4)
  return collections.OrderedDict(
    plain=random(3, 2),
    parameter=torch.nn.Parameter(random(2)),
    transposed=random(3, 5).T,
    half=random(4).half(),
    bfloat16=random(4).bfloat16(),
    double=random(2).double(),
    rows=shared[2:4],
    columns=shared[:, 1],
    all_rows=shared,
    scalar=torch.tensor(7),
    bools=torch.tensor([True, False]),
    empty=torch.zeros(0, 3),
  )


def main(folder: Path) -> None:
  named = tensors()
  state = {
    "epoch": 3,
    "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
    "best": np.float64(0.5),
    "state_dict": collections.OrderedDict((f"module.{name}", tensor) for name, tensor in named.items()),
    "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
  }
  torch.save(state, folder / "zip.pth")
  torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
  as_array = lambda tensor: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
  arrays = {name: as_array(tensor) for name, tensor in named.items()}
  np.savez(folder / "expected.npz", **arrays, made_with=np.array(f"torch {torch.__version__}, seed {SEED}"))


if __name__ == "__main__":
  main(Path(sys.argv[1]))
