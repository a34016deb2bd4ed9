"""Which of some labels each image is, by any weights of a model of images and texts: a table, and a page to look at.

./bazelw run //tools:zeroshot -- cat.jpg dog.jpg --labels=cat,dog --config=projects/siglip/configs/b16.py --weights=W
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from core import command, files
from core.errors import UserError
from core.evaluators import prompts
from core.masking import masked
from core.training import cli
from tools import embedding, zeroshot_page

_COMMAND = command.Command(
  "zeroshot IMAGE... --labels=a,b,c --config=FILE.py[:ARGS] --weights=W [options]",
  configs=True,
  words='image files, folders, or patterns like "photos/*.jpg" in quotes',
)
_COMMAND.text(
  "labels",
  "what they may be; or a file, a label a line; or the name of a data set, whose classes they are: "
  + ", ".join(prompts.known_classes()),
  shown="a,b,c",
  required=True,
)
_COMMAND.text(
  "templates",
  "a text with {} in the place of the label, a list of such, a file of them, or a set's name (default: \"a photo of a "
  '{}."; name: the label alone)',
  default="photo",
)
_COMMAND.whole("top", "how many labels of each image the table shows (default: 5)", default=5)
_COMMAND.text(
  "page", "write a page that shows the images with their scores; it needs no server and no network", shown="FILE.html"
)
_COMMAND.text("output", "write all scores", shown="FILE.json")
embedding.define_flags(_COMMAND)
_THUMBNAIL = 320  # Pixels of an image's longer side on the page.


def main(argv: Sequence[str]) -> int:
  """Prints the table, and writes the page and the scores; returns the exit status."""
  flags, overrides = _COMMAND.parse(argv or ["--help"])
  if not flags.words:
    raise UserError("no images are named; see --help")
  outputs = {name: files.from_here(flags.given[name]) for name in ("page", "output") if name in flags.given}
  for name, path in outputs.items():
    if path.exists():
      raise UserError(f"--{name}: {path} is there already; nothing is overwritten")
  classes = _classes(flags.labels)
  templates = prompts.read_templates(_as_list(flags.templates), "--templates")
  paths = [path for each in flags.words for path in embedding.find_images(each)]
  cli.start_jax(flags, next(iter(outputs.values()), files.from_here("runs/zeroshot")))
  model = embedding.Model(flags, overrides)

  written, class_of = prompts.write(classes, templates, canonicalize=model.canonicalizes())
  texts = model.texts(written)
  with model.images(paths) as images:
    model.load(images, texts)
    zimg = model.embed("image", images)
  of_classes = prompts.ensemble(model.embed("text", texts), class_of)
  similarity = embedding.similarities(zimg, of_classes)
  scale, bias = model.scale()
  probability = embedding.probabilities(similarity, scale, bias)

  labels = [names[0] for names in classes]
  print(table([path.name for path in paths], labels, probability, similarity, top=flags.top))
  found = {
    "model": masked(f"{model.project}, {flags.weights or flags.workdir or model.recipe.model_init}"),
    "labels": labels,
    "templates": list(templates),
    "by_itself": bias is not None,
    "images": [str(path) for path in paths],
    "probability": probability.round(6).tolist(),
    "similarity": similarity.round(6).tolist(),
  }
  if "output" in outputs:
    _write(outputs["output"], f"{json.dumps(found, indent=1)}\n")
  if "page" in outputs:
    pictures = [zeroshot_page.Picture.of_pixels(path.name, model.decoded(path), _THUMBNAIL) for path in paths]
    _write(outputs["page"], zeroshot_page.write(pictures, **{k: v for k, v in found.items() if k != "images"}))
  return 0


def table(
  images: Sequence[str],
  labels: Sequence[str],
  probability: Float[np.ndarray, "images labels"],
  similarity: Float[np.ndarray, "images labels"],
  *,
  top: int,
) -> str:
  """Returns a few lines an image, the most probable label first."""
  rows = [("image", "label", "probability", "similarity")]
  for name, p, s in zip(images, probability, similarity):
    best = np.argsort(-p, kind="stable")[:top]
    rows += [(name if not place else "", labels[n], f"{p[n]:.2%}", f"{s[n]:.4f}") for place, n in enumerate(best)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  ways = (str.ljust, str.ljust, str.rjust, str.rjust)
  aligned = ([to(cell, width) for to, cell, width in zip(ways, row, widths)] for row in rows)
  return "\n".join("  ".join(row).rstrip() for row in aligned)


def _classes(spec: str) -> prompts.Classes:
  """Returns labels separated by commas, or what a file or a known name stands for."""
  if "," not in spec:
    return prompts.read_classes(spec, "--labels")
  return prompts.read_classes([each.strip() for each in spec.split(",") if each.strip()], "--labels")


def _as_list(text: str) -> Any:
  """Returns a list as it is spelled in Python, or the text itself."""
  if not text.startswith(("[", "(")):
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    raise UserError(f"--templates={text} is no list like \"['a photo of a {{}}.', 'a drawing of a {{}}.']\"") from None


def _write(path: Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as file:
    file.write(text.encode())
  print(f"written to {path}")


if __name__ == "__main__":
  command.run(main)
