"""Makes files of one layer and random weights of every architecture whose weights look like ours, for ours to check.

  python -m venv ENV && ENV/bin/pip install --no-deps timm==1.0.31
  ENV/bin/pip install -r core/models/witness/generate_foreign_vit_requirements.txt
  ENV/bin/python core/models/witness/generate_architectures.py FOLDER [NAME...]
  ENV/bin/python core/models/witness/generate_architectures.py core/models/witness/architectures.npz
  PYTHONPATH=. python core/models/witness/check_architectures.py FOLDER

Each folder in FOLDER is as the library itself saves a model (`config.json`, `model.safetensors`), with `example.npz`
beside: `image` and `output`, logits or the representation of a model without a head. NAMEs are some of them alone.
The `.npz` holds some of them, still smaller, for the tests: `image`, and for each CASE `CASE/state_dict/NAME`,
`CASE/config` and `CASE/output`. Weights are float16 in it, and were exactly these numbers when they were run.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import transformers

import generate_vit  # isort: skip  # noqa: F401 (lets timm be imported where there is no torchvision)

import timm  # isort: skip
from timm.models import save_for_hf

SEED = 41
CLASSES = 5
MODULES = ("vision_transformer", "deit", "eva", "mlp_mixer", "resnetv2", "nfnet", "beit")
# Sizes for each class, tried in turn: not every maker of a model takes all of them.
_SMALL = dict(num_classes=CLASSES)
_SIZES = {"mlp_mixer": [{}], "resnetv2": [{}], "nfnet": [dict(depths=(1, 1, 1, 1))]}
_VIT = [dict(depth=1, embed_dim=32, num_heads=2), dict(depth=1)]
LARGEST = 80e6  # Parameters; what is larger has a smaller sibling of the same maker.

VISION = dict(
  hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
)
TEXT = dict(
  vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
  max_position_embeddings=12,
)  # fmt: skip


def _hf(model: str, config: str, **options):
  def make():
    cls = getattr(transformers, config)
    return getattr(transformers, model)(cls(**options))

  return make


DINO = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8, mlp_ratio=2)
SIGLIP = dict(vision_config=VISION, text_config=TEXT, num_labels=CLASSES)
HF = {
  "ViTModel": _hf("ViTModel", "ViTConfig", **VISION),
  "ViTForImageClassification": _hf("ViTForImageClassification", "ViTConfig", **VISION, num_labels=CLASSES),
  "ViT_relu": _hf("ViTForImageClassification", "ViTConfig", **VISION, hidden_act="relu"),
  "ViT_eps": _hf("ViTForImageClassification", "ViTConfig", **VISION, layer_norm_eps=0.1),
  "ViT_pooler": _hf("ViTModel", "ViTConfig", **VISION, pooler_act="relu"),
  "ViTMSNModel": _hf("ViTMSNModel", "ViTMSNConfig", **VISION),
  "ViTMAEModel": _hf("ViTMAEModel", "ViTMAEConfig", **VISION),
  "DeiTModel": _hf("DeiTModel", "DeiTConfig", **VISION),
  "IJepaModel": _hf("IJepaModel", "IJepaConfig", **VISION),
  "YolosModel": _hf("YolosModel", "YolosConfig", **VISION | dict(image_size=[32, 32], num_detection_tokens=3)),
  "VivitModel": _hf("VivitModel", "VivitConfig", **VISION, num_frames=4, tubelet_size=[2, 8, 8]),
  "Dinov2Model": _hf("Dinov2Model", "Dinov2Config", **DINO),
  "Dinov2ForImageClassification": _hf("Dinov2ForImageClassification", "Dinov2Config", **DINO, num_labels=CLASSES),
  "Dinov2_swiglu": _hf("Dinov2Model", "Dinov2Config", **DINO, use_swiglu_ffn=True),
  "Dinov2WithRegistersModel": _hf("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **DINO),
  "DINOv3ViTModel": _hf("DINOv3ViTModel", "DINOv3ViTConfig", **VISION),
  "SiglipVisionModel": _hf("SiglipVisionModel", "SiglipVisionConfig", **VISION),
  "SiglipVisionModel_eps": _hf("SiglipVisionModel", "SiglipVisionConfig", **VISION, layer_norm_eps=0.1),
  "SiglipForImageClassification": _hf("SiglipForImageClassification", "SiglipConfig", **SIGLIP),
  "SiglipTextModel": _hf("SiglipTextModel", "SiglipTextConfig", **TEXT),
  "Siglip2VisionModel": _hf(
    "Siglip2VisionModel",
    "Siglip2VisionConfig",
    **{key: value for key, value in VISION.items() if key != "image_size"},
    num_patches=16,
  ),
  "BitModel": _hf("BitModel", "BitConfig", depths=[1, 1], hidden_sizes=[128, 256], embedding_size=32),
  "BitForImageClassification": _hf(
    "BitForImageClassification", "BitConfig", depths=[1, 1, 1, 1], num_labels=CLASSES
  ),
  "Bit_bottleneck": _hf("BitModel", "BitConfig", depths=[1, 1, 1, 1], layer_type="bottleneck"),
  "Bit_same": _hf("BitModel", "BitConfig", depths=[1, 1, 1, 1], global_padding="same"),
  "BertModel": _hf("BertModel", "BertConfig", **TEXT),
  "Bert_decoder": _hf("BertModel", "BertConfig", **TEXT, is_decoder=True),
  "Bert_relu": _hf("BertModel", "BertConfig", **TEXT, hidden_act="relu"),
  "Bert_eps": _hf("BertModel", "BertConfig", **TEXT, layer_norm_eps=0.1),
  "RobertaModel": _hf("RobertaModel", "RobertaConfig", **TEXT, type_vocab_size=2),
  "ElectraModel": _hf("ElectraModel", "ElectraConfig", **TEXT, embedding_size=16),
}  # fmt: skip


def randomize(model: torch.nn.Module, rng: np.random.Generator) -> None:
  """Weights none of which is at rest, under which attention is far from uniform."""
  for name, parameter in model.named_parameters():
    at_rest = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0  # Norms and LayerScale.
    spread = 0.3 if parameter.ndim < 2 else 1.5 / np.prod(parameter.shape[1:]) ** 0.5
    values = rng.normal(at_rest, spread, tuple(parameter.shape))
    parameter.data = torch.tensor(values, dtype=torch.float32)


def make_timm(name: str) -> torch.nn.Module:
  """A model of that architecture, as small as its maker lets it be."""
  module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
  sizes = _SIZES.get(module, _VIT)
  for options in sizes[:-1]:
    try:
      return timm.create_model(name, **_SMALL, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError):
      pass
  return timm.create_model(name, **_SMALL, **sizes[-1])


def run(
  model: torch.nn.Module, rng: np.random.Generator, height: int, image: np.ndarray | None = None
) -> dict[str, np.ndarray]:
  """An input of the model, and its logits or representation."""
  if not hasattr(model, "pretrained_cfg") and getattr(model.config, "vocab_size", None):
    text = rng.integers(1, 40, (2, 12))
    with torch.no_grad():
      held = model(torch.tensor(text))
    siglip = held.pooler_output if "Siglip" in type(model).__name__ else held.last_hidden_state[:, 0]
    return {"text": text, "output": siglip.numpy()}
  image = rng.uniform(-1, 1, (2, height, height, 3)).astype(np.float32) if image is None else image
  with torch.no_grad():
    held = model(torch.tensor(image).permute(0, 3, 1, 2))
  if not isinstance(held, torch.Tensor):
    held = (
      held.logits
      if "logits" in held
      else held.pooler_output
      if held.get("pooler_output") is not None
      else held[0][:, 0]
    )
  return {"image": image, "output": held.numpy().reshape(len(held), -1)}


_TINY = dict(num_classes=CLASSES, depth=1, embed_dim=16, num_heads=2, img_size=32, patch_size=8, mlp_ratio=2)
WITNESS = {
  "reg1": ("test_vit2", _TINY),
  "reg4_map": ("vit_so150m_patch16_reg4_map_256", _TINY),
  "cls_reg9": ("vit_tiny_patch16_224", _TINY | dict(reg_tokens=9)),
  "reg4_dinov2": ("vit_base_patch14_reg4_dinov2", _TINY),
  "siglip_gap": ("vit_base_patch16_siglip_gap_224", _TINY),
  "oblong": ("vit_tiny_patch16_224", _TINY | dict(img_size=(16, 64))),
  "max": ("vit_base_patch16_gap_224", _TINY | dict(global_pool="max")),
  "relu": ("vit_tiny_patch16_224", _TINY | dict(act_layer="relu")),
  "rpn": ("vit_base_patch16_rpn_224", _TINY),
  "rope_ape": ("vit_small_patch16_rope_ape_224", _TINY),
  "SiglipForImageClassification": None,
  "Dinov2WithRegistersModel": None,
  "ViT_eps": None,
  "RobertaModel": None,
  "Bert_decoder": None,
}


def make_witness(path: str) -> None:
  """Writes the file for the tests."""
  rng = np.random.default_rng(SEED)
  image = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
  arrays = {"image": image}
  for case, made_by in WITNESS.items():
    model = (timm.create_model(made_by[0], **made_by[1]) if made_by else HF[case]()).float().eval()
    randomize(model, rng)
    for parameter in model.parameters():
      parameter.data = parameter.half().float()
    with tempfile.TemporaryDirectory() as folder:
      save_for_hf(model, folder, safe_serialization=True) if made_by else model.save_pretrained(folder)
      config = json.loads(Path(folder, "config.json").read_text())
      state_dict = safetensors.numpy.load_file(Path(folder, "model.safetensors"))
    arrays |= {f"{case}/state_dict/{name}": array.astype(np.float16) for name, array in state_dict.items()}
    arrays[f"{case}/config"] = np.array(json.dumps(config))
    if not case.startswith(("Roberta", "Bert")):
      arrays[f"{case}/output"] = run(model, rng, 32, image.reshape(2, 16, 64, 3) if case == "oblong" else image)[
        "output"
      ]
  versions = f"timm {timm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, seed {SEED}"
  np.savez_compressed(path, **arrays, made_with=np.array(versions))


def main(folder: Path, names: list[str]) -> None:
  warnings.simplefilter("ignore")
  torch.manual_seed(SEED)
  wanted = names or [*HF, *(name for module in MODULES for name in timm.list_models(module=module))]
  for name in wanted:
    rng = np.random.default_rng(SEED)
    try:
      model = (HF[name]() if name in HF else make_timm(name)).float().eval()
      randomize(model, rng)
      place = folder / name
      if name in HF:
        model.save_pretrained(place)
        example = run(model, rng, 32 if name not in ("BitModel", "BitForImageClassification") else 64)
      else:
        if (count := sum(parameter.numel() for parameter in model.parameters())) > LARGEST:
          raise ValueError(f"{count / 1e6:.0f} M parameters")
        save_for_hf(model, place, safe_serialization=True)
        grid = getattr(getattr(model, "patch_embed", None) or getattr(model, "stem", None), "img_size", None)
        example = run(model, rng, grid[0] if grid else 64)
      np.savez(place / "example.npz", **example)
    except Exception as error:  # A model that cannot be made so small, or run on an image: told, and not checked.
      print(f"{name}: not made ({type(error).__name__}: {str(error)[:100]})", flush=True)


if __name__ == "__main__":
  if sys.argv[1].endswith(".npz"):
    make_witness(sys.argv[1])
  else:
    main(Path(sys.argv[1]), sys.argv[2:])
