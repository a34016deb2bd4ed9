"""Images/s, share of the chip's matrix peak and memory of a ViT's train step, on whatever device is at hand.

    ./bazelw run --config=cuda //tools/bench:throughput -- --variants B/16 L/16 --batch_size 256

Model FLOPs are counted as 6 N a token (forward and backward of N parameters) plus attention's 12 d t^2 a layer, for t
tokens of width d: what the model needs, whatever the program computes again to save memory.
"""

import argparse
import json
import math
import statistics
import time

import jax
import jax.numpy as jnp

from core import config as config_lib
from core.models import vit
from core.optim import optimizer
from core.state import TrainState
from core.tasks.classification import Classification
from core.training.step import make_update

# Dense bfloat16 matrix peak of one device, FLOP/s, from the makers' data sheets.
PEAK = {
  "H100": 989e12,
  "H200": 989e12,
  "A100": 312e12,
  "V100": 125e12,
  "L4": 121e12,
  "TPU v4": 275e12,
  "TPU v5": 459e12,
}


def main() -> None:
  parser = argparse.ArgumentParser(prog="throughput", description=__doc__.split("\n\n")[0])
  parser.add_argument("--variants", nargs="+", default=["B/16", "L/16"])
  parser.add_argument("--batch_size", type=int, default=256)
  parser.add_argument("--resolution", type=int, default=224)
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--remat_policy", default="none")
  parser.add_argument("--trace", help="folder for a profiler trace of three steps: where the time goes")
  arguments = parser.parse_args()
  print(json.dumps([measure(variant, arguments) for variant in arguments.variants], indent=2))


def measure(variant: str, arguments: argparse.Namespace) -> dict:
  """One variant's figures, in bfloat16 with Adam."""
  config = config_lib.ConfigDict(
    dict(
      num_classes=1_000,
      model_name="vit",
      model=dict(variant=variant, pool_type="gap", dtype_mm="bfloat16", scan=True, remat_policy=arguments.remat_policy),
      optax_name="scale_by_adam",
      optax=dict(mu_dtype="bfloat16"),
      lr=1e-3,
      wd=1e-4,
      grad_clip_norm=1.0,
      schedule=dict(decay_type="cosine", warmup_steps=10),
    )
  )
  task = Classification(config)
  shape = (arguments.batch_size, arguments.resolution, arguments.resolution, 3)
  batch = {"image": jnp.zeros(shape), "labels": jnp.zeros((arguments.batch_size, 1_000))}
  params = jax.jit(lambda: task.init(jax.random.key(0), batch)["params"])()
  tx, _ = optimizer.make(config, params, sched_kw=dict(total_steps=1_000, batch_size=1, data_size=1))
  state = jax.jit(lambda params: TrainState.create(params, tx.init(params)))(params)
  update = jax.jit(make_update(task, tx, seed=0), donate_argnums=0).lower(state, batch).compile()
  seconds = []
  for number in range(arguments.steps + 5):
    began = time.perf_counter()
    state, metrics = update(state, batch)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - began)
    if arguments.trace and number == 5:
      jax.profiler.start_trace(arguments.trace)
    if arguments.trace and number == 8:
      jax.profiler.stop_trace()
  step = statistics.median(seconds[5:])
  device = jax.devices()[0]
  peak = next((value for name, value in PEAK.items() if name in device.device_kind), None)
  flops = model_flops(params, variant, arguments.resolution) * arguments.batch_size
  memory = device.memory_stats() or {}
  return {
    "device": device.device_kind,
    "variant": variant,
    "batch_size": arguments.batch_size,
    "images_per_second": round(arguments.batch_size / step, 1),
    "model_tflops_per_second": round(flops / step / 1e12, 2),
    "share_of_peak": round(flops / step / peak, 3) if peak else None,
    "peak_memory_gb": round(memory["peak_bytes_in_use"] / 1e9, 2) if "peak_bytes_in_use" in memory else None,
  }


def model_flops(params, variant: str, resolution: int) -> float:
  """Forward and backward FLOPs an image: 6 N tokens + attention."""
  options = vit.decode_variant(variant)
  tokens = (resolution // options["patch_size"][0]) ** 2
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  return 6 * count * tokens + 12 * options["depth"] * options["width"] * tokens**2


if __name__ == "__main__":
  main()
