"""Makes evaluate_timm.npz: the top-1 of timm's models on some images, which tools:evaluate must find as well.

  python -m venv ENV && ENV/bin/pip install --no-deps timm==1.0.31
  ENV/bin/pip install -r core/models/witness/generate_mixer_resnet_requirements.txt
  PYTHONPATH=core/models/witness ENV/bin/python tools/witness/generate_evaluate.py tools/witness/evaluate_timm.npz

The weights are the state dicts in core/models/witness, of a random ViT, Mixer and ResNetV2. The file holds `image`
uint8 [120, 32, 32, 3], and for each model MODEL: `MODEL/label`, of which about half are what the model answers (were
they all random, a wrong answer would rarely be noticed), and `MODEL/top1`, the share that timm gets right.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from generate_foreign_vit import make_timm
from generate_mixer_resnet import CHANNELS, CLASSES, ROOT, UNITS

import timm  # isort: skip # After what lets it be imported where there is no torchvision.
from timm.layers import StdConv2d
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnetv2 import ResNetV2

SEED, IMAGES = 50, 120
WEIGHTS = Path(__file__).parents[2] / "core" / "models" / "witness"


class _Eps(StdConv2d):
  def __init__(self, *args, **kwargs):
    super().__init__(*args, **{**kwargs, "eps": 1e-8})  # As timm makes its models with weights of BiT.


MODELS = {
  "vit": ("vit_foreign", "vit/state_dict/", make_timm),
  "mixer": (
    "mixer_timm",
    "state_dict/",
    lambda: MlpMixer(CLASSES, img_size=32, patch_size=8, num_blocks=2, embed_dim=32, mlp_ratio=(0.75, 2.0)),
  ),
  "resnet": (
    "resnet_timm",
    "state_dict/",
    lambda: ResNetV2(UNITS, CHANNELS, CLASSES, output_stride=32, stem_chs=ROOT, stem_type="fixed", conv_layer=_Eps),
  ),
}


def main(path: str) -> None:
  rng = np.random.default_rng(SEED)
  image = np.kron(rng.integers(0, 256, (IMAGES, 4, 4, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
  arrays = {"image": image}
  pixels = torch.tensor(image / 255 * 2 - 1).permute(0, 3, 1, 2)
  for name, (file, prefix, make) in MODELS.items():
    with np.load(WEIGHTS / f"{file}.npz") as stored:
      state = {key.removeprefix(prefix): torch.tensor(stored[key]) for key in stored if key.startswith(prefix)}
    model = make().double()
    model.load_state_dict({key: tensor.double() for key, tensor in state.items()})
    with torch.no_grad():
      answer = model.eval()(pixels).argmax(-1).numpy()
    label = np.where(rng.random(IMAGES) < 0.5, answer, rng.integers(0, CLASSES, IMAGES))
    arrays |= {f"{name}/label": label, f"{name}/top1": np.mean(answer == label)}
    print(f"{name}: top-1 {np.mean(answer == label):.2%}, answers {np.bincount(answer, minlength=CLASSES)}")
  np.savez_compressed(
    path, **arrays, made_by=np.array(f"timm {timm.__version__}, torch {torch.__version__}, seed {SEED}")
  )


if __name__ == "__main__":
  main(*sys.argv[1:])
