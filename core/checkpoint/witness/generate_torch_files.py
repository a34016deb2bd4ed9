"""Makes zip.pth, legacy.pth and expected.npz: a training state saved by PyTorch in its two forms, and the arrays in it.

And kinds_zip.pth, kinds_legacy.pth and kinds_expected.npz: tensors of every type of numbers that PyTorch saves, and
such as it negates or conjugates when they are looked at (`read`); tensors of other kinds (`unread`); and objects of
other packages as training programs store them (`objects`).

python -m venv ENV && ENV/bin/pip install torch==2.13.0 numpy==2.4.6
ENV/bin/python core/checkpoint/witness/generate_torch_files.py core/checkpoint/witness
"""

import argparse
import collections
import datetime
import re
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import torch

SEED = 50
PACKED = r"complex32|float4.*|bits.*"
NEVER_SAVED = r"u?int[1-7]|q.*"  # The former by no means, the latter as quantized tensors alone.


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


def numbers(dtype: torch.dtype) -> torch.Tensor:
  """Returns numbers that the type holds exactly; of integers the least and the greatest."""
  if dtype.is_complex:
    return torch.tensor([0.5 - 2j, 3j], dtype=dtype)
  if dtype.is_floating_point:
    return torch.tensor([0.5, 1.0, 4.0] if dtype == torch.float8_e8m0fnu else [0.5, -1.5, 4.0]).to(dtype)
  if dtype == torch.bool:
    return torch.tensor([True, False])
  return torch.tensor([torch.iinfo(dtype).min, 7, torch.iinfo(dtype).max], dtype=dtype)


def kinds() -> dict[str, dict]:
  dtypes = {str(each).removeprefix("torch."): each for each in vars(torch).values() if isinstance(each, torch.dtype)}
  dtypes = {name: dtype for name, dtype in sorted(dtypes.items()) if not re.fullmatch(NEVER_SAVED, name)}
  read = {name: numbers(dtype) for name, dtype in dtypes.items() if not re.fullmatch(PACKED, name)}
  read |= {
    "negated": torch._neg_view(numbers(torch.float32)),
    "conjugated": numbers(torch.complex64).conj(),
    "imaginary": numbers(torch.complex64).conj().imag,
    "buffer": torch.nn.Buffer(torch.ones(2)),
  }
  unread = {name: torch.zeros(4, dtype=dtype) for name, dtype in dtypes.items() if re.fullmatch(PACKED, name)}
  unread |= {
    "sparse": torch.eye(2).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "nested": torch.nested.nested_tensor([torch.ones(2)]),
    "meta": torch.empty(2, device="meta"),
  }
  return {"read": read, "unread": unread, "objects": objects()}


def objects() -> dict:
  return {
    "types": [torch.float16, torch.float8_e4m3fn, torch.device("cpu"), torch.Size([1]), torch.strided, int, list],
    "numpy": [np.float64(0.5), np.int64(3), np.ones(2), np.array(["words"]), np.dtype("f4")],
    "paths": [PurePosixPath("a/b")],
    "times": [datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2), datetime.timedelta(1)],
    "sets": [{1}, frozenset([1]), collections.deque([1, 2]), bytearray(b"a"), b"a", 1j, range(3), slice(1)],
    "counter": collections.Counter("aab"),
    "lists": collections.defaultdict(list, a=[1]),
    "options": argparse.Namespace(lr=0.1),
  }


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
  tensor = tensor.detach().resolve_conj().resolve_neg()
  return (tensor.float() if "float8" in str(tensor.dtype) or tensor.dtype == torch.bfloat16 else tensor).numpy()


def main_of_kinds(folder: Path) -> None:
  content = kinds()
  torch.save(content, folder / "kinds_zip.pth")
  torch.save(content, folder / "kinds_legacy.pth", _use_new_zipfile_serialization=False)
  arrays = {name: as_numpy(tensor) for name, tensor in content["read"].items()}
  np.savez(folder / "kinds_expected.npz", **arrays, made_with=np.array(f"torch {torch.__version__}"))


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
  arrays = {name: as_numpy(tensor) for name, tensor in named.items()}
  np.savez(folder / "expected.npz", **arrays, made_with=np.array(f"torch {torch.__version__}, seed {SEED}"))


if __name__ == "__main__":
  main(Path(sys.argv[1]))
  main_of_kinds(Path(sys.argv[1]))
