"""Makes core/models/foreign/timm.json: what timm's architectures compute that the weights do not tell.

  ENV/bin/python core/models/witness/generate_timm_table.py core/models/foreign/timm.json

ENV is that of `generate_architectures.py`, whose files show whether the table is right. Only architectures stand in it
whose weights have the names of ours: those that are read, with what no shape tells, and those that are refused, by what
they have.
"""

import json
import sys
import warnings
from typing import Any

import torch

import generate_vit  # isort: skip  # noqa: F401 (lets timm be imported where there is no torchvision)

import timm  # isort: skip

MODULES = (
  "vision_transformer",
  "vision_transformer_hybrid",
  "vision_transformer_relpos",
  "vision_transformer_sam",
  "deit",
  "eva",
  "beit",
  "mlp_mixer",
  "resnetv2",
  "nfnet",
)
NAMES = {
  "vit": {"patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.proj.weight"},
  "mixer": {"blocks.0.mlp_tokens.fc1.weight"},
  "resnet": {"stem.conv.weight", "stages.0.blocks.0.downsample.conv.weight"},
  "nfnet": {"stem.conv1.gain", "stages.0.0.conv1.gain"},
}
CLASSES = {
  "Eva": "rotary positions or blocks of other parts",
  "Beit": "relative positions",
  "VisionTransformerRelPos": "relative positions",
  "VisionTransformerSAM": "attention in windows",
  "VisionTransformerDistilled": "a second token that is distilled",
}
GELUS = {"none": "exact", "tanh": "tanh"}


def of_vit(model: Any) -> dict[str, Any] | str:
  """What the weights do not tell, or what the model has that ours does not."""
  block = model.blocks[0]
  norm = type(block.norm1).__name__
  reasons = {
    CLASSES.get(type(model).__name__): type(model).__name__ in CLASSES,
    "patches that a ResNet embeds": hasattr(model.patch_embed, "backbone"),
    "norms after the branches": type(block).__name__ == "ResPostBlock",
    "blocks of another kind": type(block).__name__ != "Block",
    "norms without a mean (RMSNorm)": norm.startswith("Rms"),
  }
  if reason := next((reason for reason, applies in reasons.items() if applies), None):
    return reason
  prefix = model.num_prefix_tokens
  reasons = {
    "differential attention": type(block.attn).__name__ != "Attention",
    "norms within the branches": not isinstance(block.attn.norm, torch.nn.Identity),
    "a norm before the blocks": not isinstance(model.norm_pre, torch.nn.Identity),
    "a mean of the patches beside a class token": model.global_pool == "avg" and model.has_class_token,
    "registers that are pooled": model.pool_include_prefix and prefix,
    "no norm after the blocks": isinstance(model.norm, torch.nn.Identity)
    and isinstance(model.fc_norm, torch.nn.Identity),
    f"norms that add {block.norm1.eps} to the variance": block.norm1.eps != 1e-6,
  }
  if reason := next((reason for reason, applies in reasons.items() if applies), None):
    return reason
  facts = {"num_heads": block.attn.num_heads, "pool": model.global_pool}
  gated = type(block.mlp).__name__ == "GluMlp"
  return facts | ({} if gated else {"gelu": GELUS[getattr(block.mlp.act, "approximate", "tanh")]})


def of(family: str, model: Any, names: set[str]) -> dict[str, Any] | str:
  """What the weights of a model do not tell, or what the model has that ours does not."""
  if family == "vit":
    return of_vit(model)
  if family == "mixer":
    return "gated MLPs" if "Glu" in type(model.blocks[0].mlp_tokens).__name__ else {"gelu": "exact"}
  if family == "resnet":
    return "BatchNorm" if any(name.endswith("running_mean") for name in names) else {}
  gains = any(name.endswith("skipinit_gain") for name in names)
  return {"gelu": "exact"} if gains else "no learned gain of the branches, or another attention over channels"


def main(path: str) -> None:
  warnings.simplefilter("ignore")
  read: dict[str, dict[str, list[str]]] = {family: {} for family in NAMES}
  refused: dict[str, list[str]] = {}
  for name in sorted(name for module in MODULES for name in timm.list_models(module=module)):
    with torch.device("meta"):
      model = timm.create_model(name)
    names = set(model.state_dict())
    family = next((family for family, known in NAMES.items() if known <= names), None)
    if family is None:
      continue
    found = of(family, model, names)
    if isinstance(found, str):
      refused.setdefault(found, []).append(name)
    else:
      read[family].setdefault(json.dumps(found, sort_keys=True), []).append(name)
  groups = {
    family: [{"facts": json.loads(facts), "names": names} for facts, names in sorted(by_facts.items())]
    for family, by_facts in read.items()
  }
  with open(path, "w") as file:
    json.dump({"timm": timm.__version__, "read": groups, "refused": dict(sorted(refused.items()))}, file, indent=1)
    file.write("\n")


if __name__ == "__main__":
  main(sys.argv[1])
