"""Draws what one set of weights gives at every patch size, beside ViTs of one size: the picture in the README.

    for arg in digits digits:fixed=3 digits:fixed=4 digits:fixed=6 digits:fixed=8 digits:fixed=12; do
      ./bazelw run //projects/flexivit:train -- --config=$arg --workdir=runs/flexi/${arg#*:}; done
    ./bazelw run //projects/flexivit:plot -- --runs=runs/flexi --output=projects/flexivit/repro/digits.svg

Prints the accuracies as a table, too.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from core import config as config_lib
from core import files, plots, sharding
from core.checkpoint import pretrained
from core.errors import UserError
from core.evaluators import registry
from core.models import flexi_vit, patch_resize, vit
from core.state import TrainState
from core.training import cli
from projects.flexivit.configs.digits import IMAGE, SIZES

PATCHES = tuple(IMAGE // size for size in SIZES)
# The plain ViT that is resized is the one trained for this patch size.
RESIZED = 4
Curve = dict[int, float]

_USAGE = """\
usage: plot --runs=DIR --output=FILE.svg

  --runs=DIR         the finished runs: digits, fixed=4, and those that are there of the other plain ViTs
  --output=FILE.svg  the picture
"""


def main(argv: Sequence[str]) -> int:
  flags, _ = cli.parse(argv, ("runs", "output", "help"))
  if "help" in flags or not flags:
    print(_USAGE)
    return 0
  if not {"runs", "output"} <= set(flags):
    raise UserError("give --runs=DIR and --output=FILE.svg; see --help")
  curves = measure(files.from_here(flags["runs"]))
  print(table(curves))
  output = files.from_here(flags["output"])
  with files.replacing(output) as file:
    title = f"patch size, in images of {IMAGE} px"
    file.write(plots.shares(curves, places=sorted(PATCHES), unit=" px", title=title).encode())
  print(f"written to {output}")
  return 0


def measure(runs: Path) -> dict[str, Curve]:
  """Test accuracy by patch size: of the FlexiViT, of the ViTs trained for one size, of one ViT resized in two ways."""
  flexible, fixed = _config(runs / "digits"), _config(runs / f"fixed={RESIZED}")
  files_of = {patch: runs / f"fixed={patch}" / "params.npz" for patch in PATCHES}
  params = {patch: pretrained.load_params(str(file)) for patch, file in files_of.items() if file.exists()}
  model = flexi_vit.Model(10, **flexible.model)
  of_flexi = pretrained.load_params(str(runs / "digits" / "params.npz"))
  at = lambda patch: model.clone(seqhw=(IMAGE // patch,) * 2)
  of_size = lambda patch: vit.Model(10, **{**fixed.model, "patch_size": (patch, patch)})

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


def _config(workdir: Path) -> ConfigDict:
  return config_lib.from_json(workdir / "config.json")


def _accuracy(config: ConfigDict, model: Any, params: Any) -> float:
  where = sharding.batch_sharding(sharding.make_mesh(devices=jax.devices()[:1]))
  predict = {"predict": lambda params, batch: model.apply({"params": params}, batch["image"])}
  evaluator = registry.make("test", config.evals.test, predict=predict, sharding=where)
  return evaluator.run(TrainState.create(jax.device_put(params), ()))["prec@1"]


def table(curves: Mapping[str, Curve]) -> str:
  """In Markdown, percent."""
  cell = lambda curve, patch: f"{100 * curve[patch]:.1f} %" if patch in curve else "not run"
  rows = [f"| {name} | " + " | ".join(cell(curve, p) for p in sorted(PATCHES)) + " |" for name, curve in curves.items()]
  head = "| test accuracy at patches of | " + " | ".join(f"{p} px" for p in sorted(PATCHES)) + " |"
  return "\n".join([head, "|---|" + "---|" * len(PATCHES), *rows])


if __name__ == "__main__":
  cli.exit_with(lambda: main(sys.argv[1:]))
