"""Draws what one set of weights gives at every patch size, beside ViTs of one size: the picture in the README.

    for arg in digits digits:fixed=3 digits:fixed=4 digits:fixed=6 digits:fixed=8 digits:fixed=12; do
      ./bazelw run //projects/flexivit:train -- --config=$arg --workdir=runs/flexi/${arg#*:}; done
    ./bazelw run //projects/flexivit:plot -- --runs=runs/flexi --output=projects/flexivit/repro/digits.svg

Prints the accuracies as a table, too.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from core import command, files, plots, sharding
from core.checkpoint import pretrained
from core.errors import UserError
from core.evaluators import registry
from core.models import flexi_vit, patch_resize, vit
from core.recipe import load, parse
from core.recipe.tasks import Classification
from core.state import Batch, Params, Variables
from projects.flexivit.configs.digits import IMAGE, SIZES
from projects.flexivit.train import choose_task

PATCHES = tuple(IMAGE // size for size in SIZES)
# The plain ViT that is resized is the one trained for this patch size.
RESIZED = 4
Curve = dict[int, float]

_COMMAND = command.Command("plot --runs=DIR --output=FILE.svg")
_COMMAND.text(
  "runs", "the finished runs: digits, fixed=4, and those that are there of the other plain ViTs", shown="DIR"
)
_COMMAND.text("output", "the picture", shown="FILE.svg")


def main(argv: Sequence[str]) -> int:
  """Draws the picture that the arguments ask for.

  Raises:
    UserError: a mistake in the arguments, or a run that is not there.
  """
  flags, _ = _COMMAND.parse(argv)
  if not flags.runs or not flags.output:
    raise UserError("give --runs=DIR and --output=FILE.svg; see --help")
  curves = measure(files.from_here(flags.runs))
  print(table(curves))
  output = files.from_here(flags.output)
  with files.replacing(output) as file:
    title = f"patch size, in images of {IMAGE} px"
    file.write(plots.shares(curves, places=sorted(PATCHES), unit=" px", title=title).encode())
  print(f"written to {output}")
  return 0


def measure(runs: Path) -> dict[str, Curve]:
  """Returns the test accuracy by patch size: of the FlexiViT, a ViT for each size, one ViT resized in two ways."""
  flexible, fixed = _recipe(runs / "digits"), _recipe(runs / f"fixed={RESIZED}")
  files_of = {patch: runs / f"fixed={patch}" / "params.npz" for patch in PATCHES}
  params = {patch: pretrained.load_params(str(file)) for patch, file in files_of.items() if file.exists()}
  of_flexi = pretrained.load_params(str(runs / "digits" / "params.npz"))

  def at(patch: int) -> nn.Module:
    return flexi_vit.make(flexible.num_classes, dataclasses.replace(flexible.model, seqhw=(IMAGE // patch,) * 2))

  def of_size(patch: int) -> nn.Module:
    return vit.make(fixed.num_classes, dataclasses.replace(fixed.model, patch_size=(patch, patch)))

  def resized(patch: int, resize: Callable) -> dict[str, Any]:
    base, grids = params[RESIZED], [(IMAGE // size,) * 2 for size in (RESIZED, patch)]
    embedding = {**base["embedding"], "kernel": resize(base["embedding"]["kernel"], (patch, patch))}
    positions = patch_resize.resize_grid(base["pos_embedding"], *grids)
    return {**base, "embedding": embedding, "pos_embedding": positions}

  curves = {
    "FlexiViT, one set of weights": {p: _accuracy(fixed, at(p), of_flexi) for p in PATCHES},
    "a ViT trained for each size": {p: _accuracy(fixed, of_size(p), params[p]) for p in params},
  }
  ways = {"PI-resized": patch_resize.resample_patch_embedding, "resized plainly": patch_resize.resize_patch_embedding}
  for name, way in ways.items():
    of_way = {patch: _accuracy(fixed, of_size(patch), resized(patch, way)) for patch in PATCHES}
    curves[f"the ViT of {RESIZED} px, {name}"] = of_way
  return curves


def _recipe(workdir: Path) -> Classification:
  config = load.from_json(workdir / "config.json")
  return parse.parse(choose_task(config).Recipe, config)


def _accuracy(recipe: Classification, model: nn.Module, params: Params) -> float:
  where = sharding.batch_sharding(sharding.make_mesh(devices=jax.devices()[:1]))

  def predict(variables: Variables, batch: Batch) -> Any:
    return model.apply(variables, batch["image"])

  options = dict(sharding=where, output_dir=None, batch_size=recipe.input.batch_size)
  evaluator = registry.make("test", recipe.evals["test"], predict={"predict": predict}, **options)
  return evaluator.run({"params": jax.device_put(params)})["prec@1"]


def table(curves: Mapping[str, Curve]) -> str:
  """Returns the curves in Markdown, in percent."""
  patches = sorted(PATCHES)
  rows = [
    f"| {name} | " + " | ".join(_cell(curve, patch) for patch in patches) + " |" for name, curve in curves.items()
  ]
  head = "| test accuracy at patches of | " + " | ".join(f"{patch} px" for patch in patches) + " |"
  return "\n".join([head, "|---|" + "---|" * len(patches), *rows])


def _cell(curve: Curve, patch: int) -> str:
  return f"{100 * curve[patch]:.1f} %" if patch in curve else "not run"


if __name__ == "__main__":
  command.run(main)
