"""Makes the witnesses of Mixer, the ResNets and the table of sizes: what timm and transformers compute, in PyTorch.

  python -m venv ENV && ENV/bin/pip install --no-deps timm==1.0.31
  ENV/bin/pip install -r core/models/witness/generate_mixer_resnet_requirements.txt
  ENV/bin/python core/models/witness/generate_mixer_resnet.py core/models/witness

- mixer_timm.npz: timm's MlpMixer, with either GELU (`exact/...` is timm's own, `tanh/...` that of the paper's code).
- resnet_timm.npz: timm's ResNetV2 in its BiT form. Its own reader has read the weights from a file in the layout of the
  paper's code, `params/resnet/...`, so that the names and layouts are witnessed as well.
- resnet_hf.npz: BitForImageClassification of transformers.
- bit_timm.npz: timm's ResNetV2 with units of the post-activation kind and "same" padding (that of hybrid ViTs); the
  weights, `params/NAME`, are under the published names of big_vision's `bit`.
- sizes_timm.json: parameters and multiply-adds of timm's variants, counted by PyTorch.

Each `.npz` holds `image`, `logits`, `cotangent`, `image_grad` (of sum(logits * cotangent)), and the other library's
weights as `state_dict/NAME`. Weights are float16 in the files, and were exactly these numbers when they were run.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import BitConfig, BitForImageClassification

# Lets timm be imported where there is no torchvision; not before transformers, which would take the stand-in for it.
import generate_vit  # isort: skip

import timm  # isort: skip
from timm.layers import GroupNormAct, StdConv2d
from timm.layers.std_conv import StdConv2dSame
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnetv2 import ResNetV2

SEED = 30
CLASSES = 7
ROOT, UNITS, CHANNELS = 32, (2, 1), (128, 256)  # A ResNet of width 0.5: groups of one, two and four channels.

COUNTED = {
  "vit_tiny_patch16_224": 224,
  "vit_small_patch32_224": 224,
  "vit_small_patch16_224": 224,
  "vit_base_patch32_224": 224,
  "vit_base_patch16_224": 224,
  "vit_large_patch16_224": 224,
  "vit_huge_patch14_224": 224,
  "vit_giant_patch14_224": 224,
  "vit_gigantic_patch14_224": 224,
  **{f"mixer_{name}_224": 224 for name in ("s32", "s16", "b32", "b16", "l32", "l16")},
  **{f"resnetv2_{name}_bit": 224 for name in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")},
  **{f"dm_nfnet_f{i}": size for i, size in enumerate((256, 320, 352, 416, 512, 544, 576))},
}


def random_array(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Norms about 1 and dense or convolution kernels of a spread that keeps activations near 1."""
  is_scale = (len(shape) == 1 and name.endswith(("weight", "scale", "gamma"))) or name.endswith(("scale", "gamma"))
  spread = 0.3 if len(shape) < 2 or is_scale else 1.5 / np.sqrt(np.prod(shape) / min(shape[0], shape[-1]))
  return rng.normal(1.0 if is_scale else 0.0, spread, shape).astype(np.float16).astype(np.float32)


def randomize(model: torch.nn.Module, rng: np.random.Generator) -> None:
  state = {name: random_array(rng, name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
  model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})


def stored(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  assert all((array.astype(np.float16) == array).all() for array in arrays.values())
  return {f"{prefix}/{name}": array.astype(np.float16) for name, array in arrays.items()}


def state_dict(model: torch.nn.Module) -> dict[str, np.ndarray]:
  return stored("state_dict", {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def run(model: torch.nn.Module, image: np.ndarray, cotangent: np.ndarray) -> dict[str, np.ndarray]:
  """In float64: logits and the gradient of the image, channels last."""
  pixels = torch.tensor(image, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
  output = model.eval().double()(pixels)
  logits = output if isinstance(output, torch.Tensor) else output.logits
  (logits * torch.tensor(cotangent)).sum().backward()
  as_float32 = lambda tensor: tensor.detach().numpy().astype(np.float32)
  return {"logits": as_float32(logits), "image_grad": as_float32(pixels.grad.permute(0, 2, 3, 1))}


def inputs(rng: np.random.Generator, height: int, width: int) -> dict[str, np.ndarray]:
  image = rng.uniform(-1, 1, (2, height, width, 3)).astype(np.float32)
  return {"image": image, "cotangent": rng.normal(size=(2, CLASSES)).astype(np.float32)}


def mixer(rng: np.random.Generator) -> dict[str, np.ndarray]:
  arrays = inputs(rng, 32, 32)
  models = {}
  for gelu, approximate in (("exact", "none"), ("tanh", "tanh")):
    models[gelu] = MlpMixer(
      img_size=32,
      patch_size=8,
      num_blocks=2,
      embed_dim=32,
      mlp_ratio=(0.75, 2.0),
      num_classes=CLASSES,
      act_layer=partial(torch.nn.GELU, approximate=approximate),
    )
  randomize(models["exact"], rng)
  models["tanh"].load_state_dict(models["exact"].state_dict())
  arrays |= state_dict(models["exact"])
  for gelu, model in models.items():
    arrays |= {f"{gelu}/{name}": array for name, array in run(model, **arrays_of(arrays)).items()}
  return arrays


def arrays_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name: arrays[name] for name in ("image", "cotangent")}


def conv_shapes() -> Iterator[tuple[int, int, str, tuple[int, ...]]]:
  """(block, unit, kind, shape) of every convolution in the units, kind "proj" or its number."""
  inputs = ROOT
  for block, (units, outputs) in enumerate(zip(UNITS, CHANNELS), start=1):
    for unit in range(1, units + 1):
      middle = outputs // 4
      if unit == 1:
        yield block, unit, "proj", (1, 1, inputs, outputs)
      yield block, unit, "1", (1, 1, inputs, middle)
      yield block, unit, "2", (3, 3, middle, middle)
      yield block, unit, "3", (1, 1, middle, outputs)
      inputs = outputs


def resnet_timm(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Weights in the layout of the paper's code, read by timm's reader of them."""
  shapes = {"root_block/standardized_conv2d/kernel": (7, 7, 3, ROOT)}
  for block, unit, kind, shape in conv_shapes():
    path = f"block{block}/unit{unit:02d}/{'a/proj' if kind == 'proj' else 'abc'[int(kind) - 1]}"
    shapes[f"{path}/standardized_conv2d/kernel"] = shape
    if kind != "proj":
      shapes |= {f"{path}/group_norm/{name}": shape[2:3] for name in ("gamma", "beta")}
  shapes |= {f"group_norm/{name}": CHANNELS[-1:] for name in ("gamma", "beta")}
  shapes |= {"head/conv2d/kernel": (1, 1, CHANNELS[-1], CLASSES), "head/conv2d/bias": (CLASSES,)}
  params = {f"resnet/{name}": random_array(rng, name, shape) for name, shape in shapes.items()}
  conv_layer = partial(StdConv2d, eps=1e-8)  # As timm makes its models with weights of BiT.
  model = ResNetV2(UNITS, CHANNELS, CLASSES, output_stride=32, stem_chs=ROOT, stem_type="fixed", conv_layer=conv_layer)
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "weights.npz")
    np.savez(path, **params)
    model.load_pretrained(str(path))
  arrays = inputs(rng, 45, 38) | stored("params", params) | state_dict(model)
  return arrays | run(model, **arrays_of(arrays))


def resnet_hf(rng: np.random.Generator) -> dict[str, np.ndarray]:
  config = BitConfig(embedding_size=ROOT, hidden_sizes=CHANNELS, depths=UNITS, num_labels=CLASSES, global_padding=None)
  model = BitForImageClassification(config)
  randomize(model, rng)
  arrays = inputs(rng, 45, 38) | state_dict(model)
  return arrays | run(model, **arrays_of(arrays))


def bit_timm(rng: np.random.Generator) -> dict[str, np.ndarray]:
  shapes = {"conv_root/kernel": (7, 7, 3, ROOT), "gn_root/scale": (ROOT,), "gn_root/bias": (ROOT,)}
  for block, unit, kind, shape in conv_shapes():
    path = f"block{block}/unit{unit}"
    shapes[f"{path}/conv_proj/kernel" if kind == "proj" else f"{path}/conv{kind}/kernel"] = shape
    norm = "gn_proj" if kind == "proj" else f"gn{kind}"
    shapes |= {f"{path}/{norm}/{name}": shape[3:] for name in ("scale", "bias")}
  shapes |= {"head/kernel": (CHANNELS[-1], CLASSES), "head/bias": (CLASSES,)}
  params = {name: random_array(rng, name, shape) for name, shape in shapes.items()}
  model = ResNetV2(
    UNITS,
    CHANNELS,
    CLASSES,
    output_stride=32,
    stem_chs=ROOT,
    stem_type="same",
    preact=False,
    conv_layer=partial(StdConv2dSame, eps=1e-8),
    norm_layer=partial(GroupNormAct, num_groups=32, eps=1e-6),  # flax's epsilon; timm's own would be 1e-5.
  )
  model.load_state_dict({_timm_name(name): _as_timm(array) for name, array in params.items()})
  arrays = inputs(rng, 37, 40) | stored("params", params)
  return arrays | run(model, **arrays_of(arrays))


def _timm_name(name: str) -> str:
  *path, module, kind = name.split("/")
  if module == "head":
    return {"kernel": "head.fc.weight", "bias": "head.fc.bias"}[kind]
  place = "stem"
  if path:
    block, unit = int(path[0].removeprefix("block")), int(path[1].removeprefix("unit"))
    place = f"stages.{block - 1}.blocks.{unit - 1}"
  modules = {"conv_root": "conv", "gn_root": "norm", "conv_proj": "downsample.conv", "gn_proj": "downsample.norm"}
  kinds = {"kernel": "weight", "scale": "weight", "bias": "bias"}
  return f"{place}.{modules.get(module, module.replace('gn', 'norm'))}.{kinds[kind]}"


def _as_timm(array: np.ndarray) -> torch.Tensor:
  if array.ndim == 2:
    array = array[None, None]
  return torch.tensor(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)


def sizes() -> dict[str, dict[str, int]]:
  """Parameters (with a head of 1000 classes) and multiply-adds of one image of `size` pixels."""
  counts = {}
  for name, size in COUNTED.items():
    with torch.device("meta"):
      kw = {"num_classes": 1000} | ({} if name.startswith(("resnet", "dm_")) else {"img_size": size})
      model = timm.create_model(name, **kw).eval()
      with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size))
    params = sum(parameter.numel() for parameter in model.parameters())
    # PyTorch counts a multiply-add as two operations.
    counts[name] = {"size": size, "params": params, "multiply_adds": counter.get_total_flops() // 2}
  return counts


def main(folder: str) -> None:
  assert generate_vit.timm is timm
  torch.manual_seed(SEED)  # The weights that the models start with; every one is overwritten.
  versions = (timm, torch, transformers, np)
  made_by = ", ".join(f"{module.__name__} {module.__version__}" for module in versions) + f", seed {SEED}"
  for make in (mixer, resnet_timm, resnet_hf, bit_timm):
    name = "mixer_timm" if make is mixer else make.__name__
    path = Path(folder, f"{name}.npz")
    np.savez_compressed(path, **make(np.random.default_rng(SEED)), made_by=np.array(made_by))
    print(f"{path}: {path.stat().st_size} bytes")
  path = Path(folder, "sizes_timm.json")
  lines = [f"  {json.dumps(name)}: {json.dumps(count)}" for name, count in sizes().items()]
  path.write_text("{\n" + ",\n".join([f'  "made_by": {json.dumps(made_by)}', *lines]) + "\n}\n")
  print(path.read_text())


if __name__ == "__main__":
  main(*sys.argv[1:])
