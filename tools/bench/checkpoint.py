"""How long a checkpoint holds the training loop up, asynchronous against synchronous, for ViT-B/16 with Adam.

./bazelw run //tools/bench:checkpoint
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from core import command
from core.checkpoint.state import Checkpoints
from core.models import vit
from core.state import TrainState

_COMMAND = command.Command("checkpoint [options]", about=__doc__)
_COMMAND.text("variant", "of the ViT", default="B/16", shown="NAME")
_COMMAND.whole("rounds", "how often each is measured", default=3)


def main(argv: Sequence[str]) -> int:
  """Prints the figures; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  state = make_state(flags.variant)
  # Donates the state, as training does: what is being saved must not be overwritten.
  update = jax.jit(_plus_one, donate_argnums=0)
  blocked, synchronous, peaks = [], [], [_peak_gb()]
  with tempfile.TemporaryDirectory() as folder:
    for number in range(flags.rounds):
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
    "variant": flags.variant,
    "state_gb": round(sum(x.nbytes for x in jax.tree.leaves(state)) / 1e9, 3),
    "blocked_s": round(statistics.median(blocked), 4),
    "synchronous_s": round(statistics.median(synchronous), 3),
    "blocked_to_synchronous": round(statistics.median(a / b for a, b in zip(blocked, synchronous)), 4),
    "peak_memory_before_gb": round(peaks[0], 2),
    "peak_memory_gb": round(peaks[-1], 2),
  }
  print(json.dumps(result, indent=2))
  return 0


def make_state(variant: str) -> TrainState:
  """Returns a train state of random float32 parameters and Adam's moments, which compress as badly as real ones."""
  model = vit.Model(1_000, variant=variant)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))["params"]
  tx = optax.adam(1e-3)

  def make() -> TrainState:
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), shapes)
    state = TrainState.create({"params": params}, tx.init(params))
    return jax.tree.map(lambda x: x if x.ndim == 0 else x + 0.1, state)

  return jax.block_until_ready(jax.jit(make)())


def _plus_one(state: TrainState) -> TrainState:
  return jax.tree.map(lambda x: x + 1, state)


def _peak_gb() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
  command.run(main)
