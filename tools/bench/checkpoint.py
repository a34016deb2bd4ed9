"""How long a checkpoint holds the training loop up, asynchronous against synchronous, for ViT-B/16 with Adam.

./bazelw run //tools/bench:checkpoint
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from core.checkpoint.state import Checkpoints
from core.models import vit
from core.state import TrainState


def main() -> None:
  parser = argparse.ArgumentParser(prog="checkpoint", description=__doc__.split("\n\n")[0])
  parser.add_argument("--variant", default="B/16")
  parser.add_argument("--rounds", type=int, default=3)
  arguments = parser.parse_args()
  state = make_state(arguments.variant)
  # Donates the state, as training does: what is being saved must not be overwritten.
  update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  blocked, synchronous, peaks = [], [], [_peak_gb()]
  with tempfile.TemporaryDirectory() as folder:
    for number in range(arguments.rounds):
      checkpoints = Checkpoints(Path(folder) / str(number))
      blocked.append(checkpoints.save(1, state))
      state = jax.block_until_ready(update(state))
      checkpoints.wait()
      began = time.perf_counter()
      checkpoints.save(2, state)
      checkpoints.wait()
      synchronous.append(time.perf_counter() - began)
      checkpoints.close()
      peaks.append(_peak_gb())
  result = {
    "variant": arguments.variant,
    "state_gb": round(sum(x.nbytes for x in jax.tree.leaves(state)) / 1e9, 3),
    "blocked_s": round(statistics.median(blocked), 4),
    "synchronous_s": round(statistics.median(synchronous), 3),
    "blocked_to_synchronous": round(statistics.median(a / b for a, b in zip(blocked, synchronous)), 4),
    "peak_memory_before_gb": round(peaks[0], 2),
    "peak_memory_gb": round(peaks[-1], 2),
  }
  print(json.dumps(result, indent=2))


def make_state(variant: str) -> TrainState:
  """A train state of random float32 parameters and Adam's moments, which compress as badly as real ones."""
  model = vit.Model(1_000, variant=variant)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))["params"]
  tx = optax.adam(1e-3)

  def make() -> TrainState:
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), shapes)
    state = TrainState.create(params, tx.init(params))
    return jax.tree.map(lambda x: x if x.ndim == 0 else x + 0.1, state)

  return jax.block_until_ready(jax.jit(make)())


def _peak_gb() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
  main()
