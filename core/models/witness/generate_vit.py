"""Makes vit_timm.npz: what timm's ViT, in PyTorch, computes from weights under the published names.

  python -m venv ENV && ENV/bin/pip install --no-deps timm==1.0.31
  ENV/bin/pip install -r core/models/witness/generate_vit_requirements.txt
  ENV/bin/python core/models/witness/generate_vit.py core/models/witness/vit_timm.npz

timm reads the weights with its own reader of published `.npz` files, so the names are witnessed as well. The file holds
`params/NAME`, `image`, and for each pooling (gap, tok, map): `POOL/logits`, `POOL/cotangent` and `POOL/image_grad`, the
gradient of sum(logits * cotangent). Also `patch_embedding/SIZE`, the first kernels resized as in FlexiViT, and
`count/NAME`, the numbers of parameters of timm's own variants at 224 px.
"""

import importlib.abc
import importlib.machinery
import sys
import tempfile
import types
from functools import partial
from pathlib import Path

import numpy as np
import torch

SEED = 20
COUNTED = (
  "vit_tiny_patch16_224",
  "vit_small_patch16_224",
  "vit_base_patch16_224",
  "vit_large_patch16_224",
  "vit_huge_patch14_224",
  "vit_giant_patch14_224",
  "vit_gigantic_patch14_224",
  "vit_so400m_patch14_siglip_224",
)
WIDTH, DEPTH, MLP, HEADS, PATCH, IMAGE, CLASSES = 32, 2, 64, 2, 8, 32, 7


def _any_name(name: str) -> type:
  """A class of that name, whose attributes (an enumeration's members, say) are such classes too."""
  if name.startswith("__"):
    raise AttributeError(name)
  return _AnyName(name, (), {})


class _AnyName(type):
  def __getattr__(cls, name):
    return _any_name(name)


class _NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Lets timm import torchvision, which it needs for input pipelines only, where there is none."""

  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] != "torchvision":
      return None
    return importlib.machinery.ModuleSpec(name, self, is_package=True)

  def create_module(self, spec):
    module = types.ModuleType(spec.name)
    module.__getattr__ = _any_name
    return module

  def exec_module(self, module):
    pass


sys.meta_path.insert(0, _NoTorchvision())

import timm  # noqa: E402
from timm.layers import resample_patch_embed  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402


def parameter_shapes() -> dict[str, tuple[int, ...]]:
  def attention(path):
    head = WIDTH // HEADS
    projections = {f"{path}/{name}/kernel": (WIDTH, HEADS, head) for name in ("query", "key", "value")}
    biases = {f"{path}/{name}/bias": (HEADS, head) for name in ("query", "key", "value")}
    return projections | biases | {f"{path}/out/kernel": (HEADS, head, WIDTH), f"{path}/out/bias": (WIDTH,)}

  def mlp(path):
    first = {f"{path}/Dense_0/kernel": (WIDTH, MLP), f"{path}/Dense_0/bias": (MLP,)}
    return first | {f"{path}/Dense_1/kernel": (MLP, WIDTH), f"{path}/Dense_1/bias": (WIDTH,)}

  def norm(path):
    return {f"{path}/scale": (WIDTH,), f"{path}/bias": (WIDTH,)}

  shapes = {"embedding/kernel": (PATCH, PATCH, 3, WIDTH), "embedding/bias": (WIDTH,)}
  shapes |= {"pos_embedding": (1, (IMAGE // PATCH) ** 2, WIDTH), "cls": (1, 1, WIDTH)}
  for i in range(DEPTH):
    block = f"Transformer/encoderblock_{i}"
    shapes |= norm(f"{block}/LayerNorm_0") | attention(f"{block}/MultiHeadDotProductAttention_0")
    shapes |= norm(f"{block}/LayerNorm_1") | mlp(f"{block}/MlpBlock_0")
  shapes |= norm("Transformer/encoder_norm")
  shapes |= {"MAPHead_0/probe": (1, 1, WIDTH)} | attention("MAPHead_0/MultiHeadDotProductAttention_0")
  shapes |= norm("MAPHead_0/LayerNorm_0") | mlp("MAPHead_0/MlpBlock_0")
  return shapes | {"head/kernel": (WIDTH, CLASSES), "head/bias": (CLASSES,)}


def random_parameters(rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Large enough that attention is far from uniform and every part moves the logits well above a test's tolerance."""
  spread = {"kernel": 0.3, "scale": 0.3, "bias": 0.3, "cls": 1.0, "probe": 1.0, "pos_embedding": 1.0}
  params = {}
  for name, shape in parameter_shapes().items():
    kind = name.split("/")[-1]
    params[name] = rng.normal(1.0 if kind == "scale" else 0.0, spread[kind], shape).astype(np.float32)
  return params


def run_timm(pool: str, params: dict[str, np.ndarray], image: np.ndarray, cotangent: np.ndarray):
  model = VisionTransformer(
    img_size=IMAGE,
    patch_size=PATCH,
    num_classes=CLASSES,
    embed_dim=WIDTH,
    depth=DEPTH,
    num_heads=HEADS,
    mlp_ratio=MLP / WIDTH,
    global_pool={"gap": "avg", "tok": "token", "map": "map"}[pool],
    class_token=pool == "tok",
    no_embed_class=True,
    fc_norm=False,
    norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    act_layer=partial(torch.nn.GELU, approximate="tanh"),
  ).eval()
  unused = {"gap": ("cls", "MAPHead_0"), "tok": ("MAPHead_0",), "map": ("cls",)}[pool]
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "weights.npz")
    np.savez(path, **{f"params/{name}": array for name, array in params.items() if name.split("/")[0] not in unused})
    model.load_pretrained(str(path))
  model = model.double()
  pixels = torch.tensor(image, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
  logits = model(pixels)
  (logits * torch.tensor(cotangent)).sum().backward()
  as_float32 = lambda tensor: tensor.detach().numpy().astype(np.float32)
  return as_float32(logits), as_float32(pixels.grad.permute(0, 2, 3, 1))


def main(path: str) -> None:
  torch.manual_seed(SEED)  # The weights timm starts with; every one is overwritten.
  rng = np.random.default_rng(SEED)
  params = random_parameters(rng)
  image = rng.uniform(-1, 1, (2, IMAGE, IMAGE, 3)).astype(np.float32)
  arrays = {f"params/{name}": array for name, array in params.items()} | {"image": image}
  for pool in ("gap", "tok", "map"):
    cotangent = rng.normal(size=(2, CLASSES)).astype(np.float32)
    logits, image_grad = run_timm(pool, params, image, cotangent)
    arrays |= {f"{pool}/logits": logits, f"{pool}/cotangent": cotangent, f"{pool}/image_grad": image_grad}
  kernel = torch.tensor(params["embedding/kernel"][..., :4]).permute(3, 2, 0, 1)
  for height, width in ((12, 12), (5, 5), (10, 6)):
    resized = resample_patch_embed(kernel, [height, width], interpolation="bilinear", antialias=False)
    arrays[f"patch_embedding/{height}x{width}"] = resized.permute(2, 3, 1, 0).numpy()
  for name in COUNTED:
    with torch.device("meta"):
      model = timm.create_model(name, num_classes=0, no_embed_class=True)
    arrays[f"count/{name}"] = np.array(sum(parameter.numel() for parameter in model.parameters()))
  arrays["made_by"] = np.array(
    f"timm {timm.__version__}, torch {torch.__version__}, numpy {np.__version__}, seed {SEED}"
  )
  np.savez_compressed(path, **arrays)
  print(f"{path}: {arrays['made_by']}, {Path(path).stat().st_size} bytes")


if __name__ == "__main__":
  main(*sys.argv[1:])
