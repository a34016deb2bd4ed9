"""Makes nfnet_timm.npz: what timm's NormFreeNet computes from random weights, in PyTorch.

  python -m venv ENV && ENV/bin/pip install --no-deps timm==1.0.31
  ENV/bin/pip install -r core/models/witness/generate_vit_requirements.txt
  ENV/bin/python core/models/witness/generate_nfnet.py core/models/witness/nfnet_timm.npz

The model is a dm_nfnet_f0 that shrank. The file holds `state_dict/NAME`, `image`, of a size that no stage divides,
`logits`, `cotangent` and `image_grad`, the gradient of sum(logits * cotangent). Weights are float16 in the file, and
were exactly these numbers when they were run.

What `tools:export` writes for timm is checked by `generate_foreign_vit.py --check FOLDER`.
"""

import sys
from pathlib import Path

import generate_vit  # noqa: F401  Lets timm be imported where there is no torchvision.
import numpy as np
import torch

import timm  # isort: skip

SEED = 40
CLASSES = 7
TINY = dict(
  depths=(1, 2, 2, 1), channels=(32, 32, 48, 48), stem_chs=32, group_size=8, num_features=64, num_classes=CLASSES
)


def random_array(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """No array at rest, and two kernels so small that what holds their variance away from 0 decides."""
  spread, mean = 0.3, 0.0
  if name.endswith("gain"):
    mean = 1.0
  elif len(shape) > 1:
    spread = 1.5 / np.sqrt(np.prod(shape[1:]))
    if name in ("stages.1.0.conv2.weight", "final_conv.weight"):
      spread /= 250
  return rng.normal(mean, spread, shape).astype(np.float16)


def main(path: str) -> None:
  rng = np.random.default_rng(SEED)
  model = timm.create_model("dm_nfnet_f0", **TINY).eval()
  state = {name: random_array(rng, name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
  model.load_state_dict({name: torch.tensor(array, dtype=torch.float32) for name, array in state.items()})
  # Of noise alone, any two images have nearly the same logits.
  image = (rng.uniform(-2, 2, (2, 2, 1, 3)).repeat(36, axis=1) + rng.uniform(-1, 1, (2, 72, 56, 3))).astype(np.float32)
  cotangent = rng.normal(size=(2, CLASSES)).astype(np.float32)
  pixels = torch.tensor(image, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
  logits = model.double()(pixels)
  (logits * torch.tensor(cotangent)).sum().backward()
  arrays = {f"state_dict/{name}": array for name, array in state.items()}
  arrays |= {"image": image, "logits": np.float32(logits.detach().numpy()), "cotangent": cotangent}
  arrays["image_grad"] = np.float32(pixels.grad.permute(0, 2, 3, 1).numpy())
  arrays["made_by"] = np.array(
    f"timm {timm.__version__}, torch {torch.__version__}, numpy {np.__version__}, seed {SEED}"
  )
  np.savez_compressed(path, **arrays)
  print(f"{path}: {arrays['made_by']}, {Path(path).stat().st_size} bytes")


if __name__ == "__main__":
  main(sys.argv[1])
