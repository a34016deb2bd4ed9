"""Makes vit_foreign.npz: what the ViTs of timm and transformers compute; or checks what `tools:export` wrote for them.

  python -m venv ENV && ENV/bin/pip install --no-deps timm==1.0.31
  ENV/bin/pip install -r core/models/witness/generate_foreign_vit_requirements.txt
  ENV/bin/python core/models/witness/generate_foreign_vit.py core/models/witness/vit_foreign.npz
  ENV/bin/python core/models/witness/generate_foreign_vit.py --check FOLDER

The file holds `image`, and for each CASE its state dict as that library saves it, `CASE/state_dict/NAME`, the
`config.json` that goes with it, `CASE/config`, and `CASE/output`: logits, or the representation of a model without a
head. Weights are float16 in the file, and were exactly these numbers when they were run, in float64.

`--check` takes folders that `./bazelw run //tools:export -- --to=timm` (or `hf`) wrote, builds each by the library's
own `timm.create_model("local-dir:FOLDER")` or `from_pretrained(FOLDER)`, runs the images of its `example.npz`, and
prints how far the outputs are from those stored beside them.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import transformers
from transformers import (
  Dinov2Config,
  Dinov2Model,
  Dinov2WithRegistersConfig,
  Dinov2WithRegistersModel,
  SiglipConfig,
  SiglipForImageClassification,
  SiglipVisionConfig,
  SiglipVisionModel,
  ViTConfig,
  ViTForImageClassification,
  ViTModel,
)

# Lets timm be imported where there is no torchvision; not before transformers, which would take the stand-in for it.
import generate_vit  # isort: skip  # noqa: F401

import timm  # isort: skip
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer

SEED = 40
WIDTH, DEPTH, MLP, HEADS, PATCH, IMAGE, CLASSES = 24, 2, 48, 2, 8, 32, 7
TOLERANCE = 1e-4

TIMM = {
  "vit": dict(),  # The class token has a position of its own; so in DeiT, DINO and MoCo v3.
  "gap": dict(class_token=False, global_pool="avg", fc_norm=False, qkv_bias=False),
  "fc_norm": dict(class_token=False, global_pool="avg", reg_tokens=1, no_embed_class=True),
  "map": dict(class_token=False, global_pool="map", act_layer="gelu_tanh"),
  "deit3": dict(init_values=1e-5, no_embed_class=True),
  "dinov2_registers": dict(init_values=1e-5, no_embed_class=True, reg_tokens=4, num_classes=0),
  "dinov2_swiglu": dict(init_values=1e-5, mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, mlp_ratio=4, num_classes=0),
}
_SIZES = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=IMAGE, patch_size=PATCH)
_VISION = dict(_SIZES, intermediate_size=MLP)
HF = {
  "hf_vit": lambda: ViTForImageClassification(ViTConfig(**_VISION, num_labels=CLASSES)),
  "hf_vit_pooler": lambda: ViTModel(ViTConfig(**_VISION, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-2)),
  "hf_dinov2_swiglu": lambda: Dinov2Model(Dinov2Config(**_SIZES, mlp_ratio=2, use_swiglu_ffn=True)),
  "hf_dinov2_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_SIZES, mlp_ratio=2)),
  "hf_siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**_VISION)),
  "hf_siglip_classifier": lambda: SiglipForImageClassification(
    SiglipConfig(vision_config=dict(_VISION, vision_use_head=False), num_labels=CLASSES)
  ),
}


def randomize(model: torch.nn.Module, rng: np.random.Generator) -> None:
  """Weights none of which is at rest, exact in float16, under which attention is far from uniform."""
  for name, parameter in model.named_parameters():
    at_rest = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0  # Norms and LayerScale.
    values = rng.normal(at_rest, 0.3, parameter.shape).astype(np.float16)
    parameter.data = torch.tensor(values.astype(np.float64))


def run(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
  """The logits, or the representation of a model without a head."""
  pixels = torch.tensor(image).permute(0, 3, 1, 2).to(next(model.parameters()).dtype)
  with torch.no_grad():
    output = model(pixels)
  if isinstance(output, torch.Tensor):
    return output.numpy().astype(np.float32)
  if "logits" in output:
    return output.logits.numpy().astype(np.float32)
  # What transformers pools in DINOv2 and in a ViT without a pooler is the class token.
  pooled = output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output
  return pooled.numpy().astype(np.float32)


def make_timm(**options) -> VisionTransformer:
  sizes = dict(img_size=IMAGE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=MLP / WIDTH)
  return VisionTransformer(**{"num_classes": CLASSES, **sizes, **options})


def saved(model: torch.nn.Module) -> tuple[dict[str, np.ndarray], str]:
  """The state dict and config as the library saves them."""
  if not hasattr(model, "save_pretrained"):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}, "{}"
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    arrays = safetensors.numpy.load_file(Path(folder, "model.safetensors"))
    config = json.loads(Path(folder, "config.json").read_text())
  return arrays, json.dumps(config)


def make(path: str) -> None:
  torch.manual_seed(SEED)  # The weights a model starts with; every one is overwritten.
  rng = np.random.default_rng(SEED)
  image = rng.uniform(-1, 1, (2, IMAGE, IMAGE, 3)).astype(np.float32)
  arrays = {"image": image}
  versions = f"timm {timm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, seed {SEED}"
  makers = {name: partial(make_timm, **options) for name, options in TIMM.items()} | HF
  for case, maker in makers.items():
    model = maker().double().eval()
    randomize(model, rng)
    state_dict, config = saved(model)
    arrays |= {f"{case}/state_dict/{name}": array.astype(np.float16) for name, array in state_dict.items()}
    arrays |= {f"{case}/config": np.array(config), f"{case}/output": run(model, image)}
  np.savez_compressed(path, **arrays, made_with=np.array(versions))


def load(folder: Path) -> torch.nn.Module:
  config = json.loads((folder / "config.json").read_text())
  if "architecture" in config:
    return timm.create_model(f"local-dir:{folder}", pretrained=True)
  model, report = getattr(transformers, config["architectures"][0]).from_pretrained(folder, output_loading_info=True)
  missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
  assert not missing, f"{folder} lacks {missing}"
  assert not report["unexpected_keys"], f"{folder} has besides {report['unexpected_keys']}"
  if "pooler_output_size" not in config and hasattr(model, "pooler"):
    model.pooler = None  # Made up at random where the file has none.
  return model


def check(folders: list[str]) -> None:
  failed = False
  for folder in map(Path, folders):
    with np.load(folder / "example.npz") as example:
      image, expected = example["image"], example["output"]
    output = run(load(folder).eval(), image)
    difference, size = np.abs(output - expected).max(), np.abs(expected).max()
    failed |= not difference <= TOLERANCE * max(1.0, size)
    agree = (output.argmax(-1) == expected.argmax(-1)).mean()
    print(f"{folder}: largest difference {difference:.1e} of outputs up to {size:.1f}; {agree:.0%} have the same top-1")
  sys.exit(failed)


if __name__ == "__main__":
  if sys.argv[1] == "--check":
    check(sys.argv[2:])
  else:
    make(sys.argv[1])
