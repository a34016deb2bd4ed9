"""Makes export.npz: what timm and transformers compute from an image's file by the folders that tools:export writes.

  PYTHONPATH=. python tools/export_images_test.py FOLDER         (with the project's own pins: writes the folders)
  python -m venv ENV && ENV/bin/pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 transformers==5.24.0
  ENV/bin/python tools/witness/generate_export.py FOLDER tools/witness/export.npz

Each folder is loaded by the library's own `timm.create_model("local-dir:FOLDER")` or `from_pretrained(FOLDER)`, and the
images by its own `create_transform` or `AutoImageProcessor`. The file holds `raw/N`, the bytes of PNG files; and for
each case and library `CASE/LIBRARY/settings`, what it was told of the preprocessing, and `CASE/LIBRARY/logits`. Two
towers are run by `AutoProcessor` on the first image and on `towers/texts`, to `towers/tokens` and `towers/logits`.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import timm
import torch
import transformers
from timm.data import create_transform, resolve_model_data_config

SEED = 60
TEXTS = ["a photo of the digit seven", "a handwritten nine, written IN red!", "zzz"]
SIZES = ((60, 45), (24, 29))  # One that is shrunk and one that is enlarged.


def raw_files() -> list[bytes]:
  rng = np.random.default_rng(SEED)
  files = []
  for height, width in SIZES:
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC), np.int64)
    noisy = np.clip(smooth + rng.integers(-90, 91, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noisy).save(file, "png")
    files.append(file.getvalue())
  return files


def by_timm(folder: Path, images: list[PIL.Image.Image]) -> tuple[dict, list[torch.Tensor]]:
  model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
  transform = create_transform(**resolve_model_data_config(model), is_training=False)
  told = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
  settings = {key: told[key] for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std")}
  return settings, [model(transform(image)[None])[0] for image in images]


def by_transformers(folder: Path, images: list[PIL.Image.Image]) -> tuple[dict, list[torch.Tensor]]:
  model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
  processor = transformers.AutoImageProcessor.from_pretrained(folder)
  settings = json.loads((folder / "preprocessor_config.json").read_text())
  return settings, [model(**processor(image, return_tensors="pt")).logits[0] for image in images]


def by_processor(folder: Path, image: PIL.Image.Image) -> dict[str, np.ndarray]:
  model = transformers.AutoModel.from_pretrained(folder).eval()
  processor = transformers.AutoProcessor.from_pretrained(folder)
  inputs = processor(text=TEXTS, images=image, padding="max_length", truncation=True, return_tensors="pt")
  logits = model(**inputs).logits_per_image
  return {"texts": np.array(TEXTS), "tokens": inputs["input_ids"].numpy(), "logits": logits.numpy()}


def main(folder: Path, path: str) -> None:
  raw = raw_files()
  images = [PIL.Image.open(io.BytesIO(data)).convert("RGB") for data in raw]
  arrays = {f"raw/{i}": np.frombuffer(data, np.uint8) for i, data in enumerate(raw)}
  for case in sorted(each.name for each in folder.iterdir() if each.is_dir() and (each / "timm").is_dir()):
    for library, run in (("timm", by_timm), ("hf", by_transformers)):
      with torch.no_grad():
        settings, logits = run(folder / case / library, images)
      arrays[f"{case}/{library}/settings"] = np.array(json.dumps(settings))
      arrays[f"{case}/{library}/logits"] = torch.stack(logits).numpy()
  with torch.no_grad():
    towers = by_processor(folder / "towers", images[0])
  arrays |= {f"towers/{name}": array for name, array in towers.items()}
  versions = f"timm {timm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, seed {SEED}"
  np.savez_compressed(path, **arrays, made_with=np.array(versions))


if __name__ == "__main__":
  main(Path(sys.argv[1]), sys.argv[2])
