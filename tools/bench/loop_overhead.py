"""Time a step of the training loop against the same compiled step in a bare `for` on a cached batch, in one run.

`loop` has the cached batch, too: what is left is what the loop itself costs. `loop_with_input` also makes its batches;
on a CPU, which is host and device at once, that work takes cores from the step, elsewhere it does not.

./bazelw run //tools/bench:loop_overhead
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import functools
import json
import statistics
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from core import command, data_files
from core.data import feed, pipeline
from core.recipe import load
from core.recipe.parse import parse
from core.state import Batch
from core.tasks.classification import Classification
from core.training import loop, metrics, progress
from tools.bench import train_step

_COMMAND = command.Command("loop_overhead [options]", about=__doc__)
_COMMAND.whole("rounds", "how often each is measured", default=9)
_COMMAND.whole("steps", "of a round", default=250)


def main(argv: Sequence[str]) -> int:
  """Prints the times; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  recipe = _recipe(flags.steps)
  task = Classification(recipe)
  progress.default_stream = _nowhere
  variants = {
    "bare": make_bare(task, recipe),
    "loop": functools.partial(in_loop, task, recipe, CachedFeed),
    "loop_with_input": functools.partial(in_loop, task, recipe, feed.to_devices),
  }
  seconds = {name: [] for name in variants}
  with tempfile.TemporaryDirectory() as cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    for _ in range(flags.rounds):  # The variants take turns, so that what the machine does meets them all.
      for name, measure in variants.items():
        seconds[name].append(measure())
  ratios = {
    f"{name}_to_bare": round(statistics.median(a / b for a, b in zip(seconds[name], seconds["bare"])), 4)
    for name in ("loop", "loop_with_input")
  }
  medians = {f"{name}_ms": round(1e3 * statistics.median(each), 3) for name, each in seconds.items()}
  print(json.dumps({**medians, **ratios, "rounds": flags.rounds}, indent=2))
  return 0


def _recipe(steps: int) -> Classification.Recipe:
  file = data_files.find("projects/vit/configs/digits.py")
  lengths = {"total_steps": steps, "log_training_steps": 50, "ckpt_steps": 10 * steps}
  config = load.read(str(file), [("evals", "{}"), *((key, str(value)) for key, value in lengths.items())])
  return parse(Classification.Recipe, config)


def _nowhere(is_first_process: bool) -> None:
  """Stands for the stream that a run's progress goes to."""
  del is_first_process


class CachedFeed:
  """In place of `feed.to_devices`: the same batch on the devices at every step, as the bare `for` has it."""

  def __init__(self, batches: Iterator[Any], sharding: jax.sharding.NamedSharding):
    self._batch = feed.put(next(batches), sharding)

  def __next__(self) -> Batch:
    return self._batch

  def close(self) -> None:
    """Ends nothing."""


def in_loop(task: Classification, recipe: Classification.Recipe, to_devices: Callable[..., Any]) -> float:
  """Returns the seconds a step of a run of the loop, fed by `to_devices`."""
  with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.object(feed, "to_devices", to_devices):
    loop.run(task, recipe, Path(folder))
    # The first lines hold the compilation and the filling of the queues.
    lines = [line["time/step_seconds"] for line in metrics.read(Path(folder) / "metrics.jsonl")][2:-1]
  return statistics.mean(lines)


def make_bare(task: Classification, recipe: Classification.Recipe) -> Callable[[], float]:
  """Returns `run() -> seconds a step` of the compiled step alone."""
  data = pipeline.train_batches(recipe.input, seed=0, start_step=0)
  on_host, steps = next(data), recipe.total.steps()
  lengths = dict(total_steps=steps, batch_size=recipe.input.batch_size, data_size=data.num_examples)
  compiled = train_step.compile_step(task, recipe, on_host, lengths=lengths)
  batch = feed.put(on_host, compiled.placement.batch_sharding)
  data.close()
  state = compiled.fresh_state(batch)

  def run() -> float:
    nonlocal state
    for number in range(steps):
      if number == steps // 4:
        jax.block_until_ready(state)
        began = time.perf_counter()
      state, _ = compiled.update(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / (steps - steps // 4)

  return run


if __name__ == "__main__":
  command.run(main)
