"""Time a step of the training loop against the same compiled step in a bare `for` on a cached batch, in one run.

`loop` has the cached batch, too: what is left is what the loop itself costs. `loop_with_input` also makes its batches;
on a CPU, which is host and device at once, that work takes cores from the step, elsewhere it does not.

./bazelw run //tools/bench:loop_overhead
"""

import argparse
import json
import statistics
import tempfile
import time
import unittest.mock
from pathlib import Path

import jax

from core import config as config_lib
from core.data import feed, pipeline
from core.optim import optimizer
from core.sharding import batch_sharding, make_mesh
from core.state import TrainState
from core.tasks.classification import Classification
from core.training import loop, metrics, progress
from core.training.step import make_update


def main() -> None:
  parser = argparse.ArgumentParser(prog="loop_overhead", description=__doc__.split("\n\n")[0])
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--steps", type=int, default=250)
  arguments = parser.parse_args()
  config = config_lib.load(str(Path(__file__).parents[2] / "projects/vit/configs/digits.py"))
  with config.unlocked():
    del config.total_epochs
    config.total_steps = arguments.steps
    config.log_training_steps = 50
    config.ckpt_steps = 10 * arguments.steps
    config.evals = {}
  task = Classification(config)
  progress.default_stream = lambda is_first_process: None
  bare = make_bare(task, config)
  variants = {
    "bare": lambda: bare(arguments.steps),
    "loop": lambda: in_loop(task, config, CachedFeed),
    "loop_with_input": lambda: in_loop(task, config, feed.to_devices),
  }
  seconds = {name: [] for name in variants}
  with tempfile.TemporaryDirectory() as cache:
    jax.config.update("jax_compilation_cache_dir", cache)
    for _ in range(arguments.rounds):  # The variants take turns, so that what the machine does meets them all.
      for name, measure in variants.items():
        seconds[name].append(measure())
  ratios = {
    f"{name}_to_bare": round(statistics.median(a / b for a, b in zip(seconds[name], seconds["bare"])), 4)
    for name in ("loop", "loop_with_input")
  }
  medians = {f"{name}_ms": round(1e3 * statistics.median(each), 3) for name, each in seconds.items()}
  print(json.dumps({**medians, **ratios, "rounds": arguments.rounds}, indent=2))


class CachedFeed:
  """In place of `feed.to_devices`: the same batch on the devices at every step, as the bare `for` has it."""

  def __init__(self, batches, sharding):
    self._batch = feed.put(next(batches), sharding)

  def __next__(self):
    return self._batch

  def close(self) -> None:
    """Nothing to end."""


def in_loop(task: Classification, config: config_lib.ConfigDict, to_devices) -> float:
  """Seconds a step of a run of the loop, fed by `to_devices`."""
  with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.object(loop.feed, "to_devices", to_devices):
    loop.run(task, config, Path(folder))
    # The first lines hold the compilation and the filling of the queues.
    lines = [line["time/step_seconds"] for line in metrics.read(Path(folder) / "metrics.jsonl")][2:-1]
  return statistics.mean(lines)


def make_bare(task: Classification, config: config_lib.ConfigDict):
  """`run(steps) -> seconds a step` of the compiled step alone."""
  data = pipeline.train_batches(config.input, seed=0, start_step=0)
  batch = next(feed.to_devices(data, batch_sharding(make_mesh())))
  params = jax.jit(lambda: task.init(jax.random.key(0), batch)["params"])()
  known = dict(total_steps=config.total_steps, batch_size=config.input.batch_size, data_size=data.num_examples)
  tx, _ = optimizer.make(config, params, sched_kw=known)
  state = jax.jit(lambda params: TrainState.create(params, tx.init(params)))(params)
  update = jax.jit(make_update(task, tx, seed=0), donate_argnums=0).lower(state, batch).compile()

  def run(steps: int) -> float:
    nonlocal state
    for number in range(steps):
      if number == steps // 4:
        jax.block_until_ready(state)
        began = time.perf_counter()
      state, _ = update(state, batch)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / (steps - steps // 4)

  return run


if __name__ == "__main__":
  main()
