"""Makes vit_older.npz: what timm computes from ViT files of older layouts, read by its own reader of them.

  ENV/bin/python core/models/witness/generate_older_vit.py core/models/witness/vit_older.npz

in the environment of generate_vit.py. For each layout the file holds `LAYOUT/file/NAME`, the weights as such a file has
them, and `LAYOUT/logits`; and `image` once. The layouts:

  first     the first published files: a root, modules counted together, positions in a module, one of them the class's
  scan      the tree under `params/`, blocks stacked, attention pooling
  naflex    an image tower with a matrix for a patch embedding, and rows and columns of positions
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import generate_vit as tiny  # Hides that torchvision is not there.
import numpy as np
import timm
import torch
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.vision_transformer import VisionTransformer

SEED = 21
GRID = tiny.IMAGE // tiny.PATCH


def without(params: dict[str, np.ndarray], *parts: str) -> dict[str, np.ndarray]:
  return {name: array for name, array in params.items() if name.split("/")[0] not in parts}


def first(params: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
  params = without(params, "MAPHead_0")
  positions = params.pop("pos_embedding")
  class_position = rng.normal(size=(1, 1, tiny.WIDTH)).astype(np.float32)
  params["Transformer/posembed_input/pos_embedding"] = np.concatenate([class_position, positions], axis=1)
  counted = {"MultiHeadDotProductAttention_0": 1, "LayerNorm_1": 2, "MlpBlock_0": 3}
  for now, number in counted.items():
    then = f"{now.rpartition('_')[0]}_{number}"
    params = {name.replace(f"/{now}/", f"/{then}/"): array for name, array in params.items()}
  return {f"opt/target/{name}": array for name, array in params.items()}


def scan(params: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
  del rng
  params = without(params, "cls")
  of_first = "Transformer/encoderblock_0/"
  inner = [name.removeprefix(of_first) for name in params if name.startswith(of_first)]
  for name in inner:
    blocks = [params.pop(f"Transformer/encoderblock_{i}/{name}") for i in range(tiny.DEPTH)]
    params[f"Transformer/encoderblock/{name}"] = np.stack(blocks)
  return {f"params/{name}": array for name, array in params.items()}


def naflex(params: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
  del rng
  params = without(params, "cls")
  params["embedding/kernel"] = params["embedding/kernel"].reshape(-1, tiny.WIDTH)
  params["pos_embedding"] = params["pos_embedding"].reshape(GRID, GRID, tiny.WIDTH)
  return {f"params/img/{name}": array for name, array in params.items()}


def plain_model(pool: str) -> torch.nn.Module:
  return VisionTransformer(
    img_size=tiny.IMAGE,
    patch_size=tiny.PATCH,
    num_classes=tiny.CLASSES,
    embed_dim=tiny.WIDTH,
    depth=tiny.DEPTH,
    num_heads=tiny.HEADS,
    mlp_ratio=tiny.MLP / tiny.WIDTH,
    global_pool=pool,
    class_token=pool == "token",
    no_embed_class=pool != "token",
    norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    act_layer=partial(torch.nn.GELU, approximate="tanh"),
  )


def naflex_model() -> torch.nn.Module:
  cfg = NaFlexVitCfg(
    patch_size=tiny.PATCH,
    embed_dim=tiny.WIDTH,
    depth=tiny.DEPTH,
    num_heads=tiny.HEADS,
    mlp_ratio=tiny.MLP / tiny.WIDTH,
    pos_embed_grid_size=(GRID, GRID),
    attn_pool_mlp_ratio=tiny.MLP / tiny.WIDTH,
    act_layer="gelu_tanh",
  )
  return NaFlexVit(cfg, num_classes=tiny.CLASSES, img_size=tiny.IMAGE)


def logits_of(model: torch.nn.Module, file: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "weights.npz")
    np.savez(path, **file)
    model.load_pretrained(str(path))
  with torch.no_grad():
    logits = model.double().eval()(torch.tensor(image, dtype=torch.float64).permute(0, 3, 1, 2))
  return logits.numpy().astype(np.float32)


def main(path: str) -> None:
  torch.manual_seed(SEED)  # The weights timm starts with; every one is overwritten.
  rng = np.random.default_rng(SEED)
  image = rng.uniform(-1, 1, (2, tiny.IMAGE, tiny.IMAGE, 3)).astype(np.float32)
  arrays = {"image": image}
  layouts = {
    "first": (first, plain_model("token")),
    "scan": (scan, plain_model("map")),
    "naflex": (naflex, naflex_model()),
  }
  for layout, (make, model) in layouts.items():
    file = make(tiny.random_parameters(rng), rng)
    arrays |= {f"{layout}/file/{name}": array for name, array in file.items()}
    arrays[f"{layout}/logits"] = logits_of(model, file, image)
  arrays["made_by"] = np.array(
    f"timm {timm.__version__}, torch {torch.__version__}, numpy {np.__version__}, seed {SEED}"
  )
  np.savez_compressed(path, **arrays)
  print(f"{path}: {arrays['made_by']}, {Path(path).stat().st_size} bytes")


if __name__ == "__main__":
  main(*sys.argv[1:])
