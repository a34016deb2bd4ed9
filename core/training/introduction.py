"""What will run on what, in a few lines at a run's start."""

import math
import os
from pathlib import Path

import jax

from core.data import notes
from core.errors import first_few
from core.training.plan import Plan
from core.training.progress import table
from core.training.state_init import Placement


def lines(title: str, placement: Placement, plan: Plan, num_examples: int, workdir: Path, start: int) -> str:
  """Returns the title and a table of model, devices, data, length and workdir."""
  recipe, devices = placement.recipe, placement.mesh.devices.flat
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(placement.shapes.params))
  cores = f" of {os.cpu_count()} cores" if devices[0].platform == "cpu" else ""
  processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
  epochs = plan.total * recipe.input.batch_size / num_examples
  classes = notes.classes(recipe.input)
  rows = {
    "model": f"{recipe.describe_model()}, {count:,} parameters",
    "device": f"{len(devices)} x {devices[0].device_kind}{cores}{processes}, mesh {dict(placement.mesh.shape)}",
    "data": f"{recipe.input.describe()}: {num_examples:,} examples, batch {recipe.input.batch_size:,}"
    + (f"; {classes}" if classes else ""),
    "train": f"{plan.total:,} steps, {epochs:.4g} epochs",
    "run": f"{workdir}" + (f", resumed after step {start:,}" if start else ""),
  }
  if overlaps := notes.overlaps(recipe.input, recipe.evals):
    rows["overlap"] = first_few(overlaps, joint="; ")
  return f"{title}\n{table(rows)}"
