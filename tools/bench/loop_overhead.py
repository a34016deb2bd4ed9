"""Time a step of the training loop against the same compiled step in a bare `for` on a cached batch, in one run.

./bazelw run //tools/bench:loop_overhead
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax

from core import config as config_lib
from core.data import feed, pipeline
from core.optim import optimizer
from core.sharding import batch_sharding, make_mesh
from core.training import loop, metrics, progress
from core.training.state import TrainState
from core.training.step import make_update
from projects.vit import train


def main() -> None:
  parser = argparse.ArgumentParser(prog="loop_overhead", description=__doc__.split("\n\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=300)
  arguments = parser.parse_args()
  config = config_lib.load(str(Path(train.__file__).parent / "configs" / "digits.py"))
  with config.unlocked():
    del config.total_epochs
    config.total_steps = arguments.steps
    config.log_training_steps = 50
    config.ckpt_steps = 10 * arguments.steps
    config.evals = {}
  task = train.Classification(config)
  progress.default_stream = lambda is_first_process: None
  bare = make_bare(task, config)
  seconds = {"loop": [], "bare": []}
  for _ in range(arguments.rounds):
    seconds["bare"].append(bare(arguments.steps))
    with tempfile.TemporaryDirectory() as folder:
      loop.run(task, config, Path(folder))
      # The first lines hold the compilation and the filling of the queues.
      lines = [line["time/step_seconds"] for line in metrics.read(Path(folder) / "metrics.jsonl")][2:-1]
      seconds["loop"].append(statistics.mean(lines))
  ratio = statistics.median(a / b for a, b in zip(seconds["loop"], seconds["bare"]))
  medians = {f"{name}_ms": round(1e3 * statistics.median(each), 3) for name, each in seconds.items()}
  print(json.dumps({**medians, "loop_to_bare": round(ratio, 4), "rounds": arguments.rounds}, indent=2))


def make_bare(task: train.Classification, config: config_lib.ConfigDict):
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
