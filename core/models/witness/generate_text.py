"""Makes text_hf.npz: what SigLIP and BERT of transformers compute; or checks folders in the form that it loads.

  python -m venv ENV && ENV/bin/pip install -r core/models/witness/generate_text_requirements.txt
  ENV/bin/python core/models/witness/generate_text.py core/models/witness/text_hf.npz
  ENV/bin/python core/models/witness/generate_text.py --check FOLDER...

The file holds `image` and `text` (token ids, padded with 0), and for each CASE its state dict as the library saves it,
`CASE/state_dict/NAME`, the `config.json` that goes with it, `CASE/config`, and what it gives: `CASE/logits` [images,
texts], `CASE/zimg` and `CASE/ztxt` of SigLIP, `CASE/output` of the others. Weights are float16 in the file, and were
exactly these numbers when they were run, in float64.

`--check` takes folders with `config.json`, `model.safetensors` and `example.npz` (`image`, `text`, and `logits` or
`output`), builds each by the library's own `from_pretrained(FOLDER)`, and prints how far its outputs are from those
stored. `WRITE_SIGLIP_TO=FOLDER` makes a test of siglip_test.py leave such a folder there.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import transformers
from transformers import (
  BertConfig,
  BertForPreTraining,
  BertModel,
  SiglipConfig,
  SiglipModel,
  SiglipTextConfig,
  SiglipTextModel,
)

SEED = 42
TOLERANCE = 1e-4
_SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
_TEXT = dict(_SIZES, vocab_size=50, max_position_embeddings=6)
_BERT = dict(_SIZES, vocab_size=50, max_position_embeddings=12)
CASES = {
  "siglip": lambda: SiglipModel(
    SiglipConfig(vision_config=dict(_SIZES, image_size=32, patch_size=8), text_config=dict(_TEXT))
  ),
  "siglip_text": lambda: SiglipTextModel(SiglipTextConfig(**_TEXT, projection_size=16, hidden_act="gelu")),
  "bert": lambda: BertModel(BertConfig(**_BERT)),
  "bert_pretraining": lambda: BertForPreTraining(BertConfig(**_BERT, hidden_act="gelu_new")),
}


def randomize(model: torch.nn.Module, rng: np.random.Generator) -> None:
  """Weights none of which is at rest, exact in float16, under which attention is far from uniform."""
  for name, parameter in model.named_parameters():
    at_rest = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
    values = rng.normal(at_rest, 0.3, parameter.shape).astype(np.float16)
    parameter.data = torch.tensor(values.astype(np.float64))


def run(model: torch.nn.Module, image: np.ndarray, text: np.ndarray) -> dict[str, np.ndarray]:
  dtype = next(model.parameters()).dtype
  ids = torch.tensor(text.astype(np.int64))
  with torch.no_grad():
    if isinstance(model, SiglipModel):
      out = model(input_ids=ids, pixel_values=torch.tensor(image).permute(0, 3, 1, 2).to(dtype))
      found = {"logits": out.logits_per_image, "zimg": out.image_embeds, "ztxt": out.text_embeds}
    elif isinstance(model, SiglipTextModel):
      found = {"output": model(input_ids=ids).pooler_output}
    else:
      encoder = getattr(model, "bert", model)
      found = {"output": encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]}
  return {name: tensor.numpy().astype(np.float32) for name, tensor in found.items()}


def saved(model: torch.nn.Module) -> tuple[dict[str, np.ndarray], str]:
  """The state dict and config as the library saves them."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    arrays = safetensors.numpy.load_file(Path(folder, "model.safetensors"))
    config = json.loads(Path(folder, "config.json").read_text())
  return arrays, json.dumps(config)


def make(path: str) -> None:
  torch.manual_seed(SEED)  # The weights a model starts with; every one is overwritten.
  rng = np.random.default_rng(SEED)
  image = rng.uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
  text = rng.integers(1, 50, (4, 6)).astype(np.int32)
  for row, length in enumerate((6, 4, 2, 5)):
    text[row, length:] = 0
  arrays = {"image": image, "text": text}
  for case, maker in CASES.items():
    model = maker().double().eval()
    randomize(model, rng)
    state_dict, config = saved(model)
    arrays |= {f"{case}/state_dict/{name}": array.astype(np.float16) for name, array in state_dict.items()}
    arrays[f"{case}/config"] = np.array(config)
    arrays |= {f"{case}/{name}": array for name, array in run(model, image, text).items()}
  versions = f"transformers {transformers.__version__}, torch {torch.__version__}, seed {SEED}"
  np.savez_compressed(path, **arrays, made_with=np.array(versions))


def check(folders: list[str]) -> None:
  failed = False
  for folder in map(Path, folders):
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], f"{folder} lacks {report['missing_keys']}"
    assert not report["unexpected_keys"], f"{folder} has besides {report['unexpected_keys']}"
    with np.load(folder / "example.npz") as example:
      image, text = example["image"], example["text"]
      expected = {name: example[name] for name in ("logits", "output") if name in example}
    found = run(model.eval(), image, text)
    for name, array in expected.items():
      difference = np.abs(found[name] - array).max()
      failed |= not difference <= TOLERANCE * max(1.0, np.abs(array).max())
      print(f"{folder}: {architecture}: largest difference {difference:.1e} of {name} up to {np.abs(array).max():.1f}")
  sys.exit(failed)


if __name__ == "__main__":
  if sys.argv[1] == "--check":
    check(sys.argv[2:])
  else:
    make(sys.argv[1])
