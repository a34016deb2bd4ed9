"""Images/s, share of the chip's matrix peak and memory of a ViT's train step, on whatever device is at hand.

    ./bazelw run --config=cuda //tools/bench:throughput -- --variants=B/16,L/16 --batch_size=256

Model FLOPs are counted as 6 N a token (forward and backward of N parameters) plus attention's 12 d t^2 a layer, for t
tokens of width d: what the model needs, whatever the program computes again to save memory.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from core import command
from core.recipe.models.vit import decode_variant
from core.state import Params
from core.tasks.classification import Classification
from tools.bench import train_step

# Dense bfloat16 matrix peak of one device, FLOP/s, from the makers' data sheets. The first that a device's name holds
# counts. Of TPU v2, v3 and TPU7x a device is half a chip.
PEAK = {
  "H100": 989e12,
  "H200": 989e12,
  "A100": 312e12,
  "V100": 125e12,
  "L4": 121e12,
  "TPU v2": 23e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5": 459e12,
  "TPU v6 lite": 918e12,
  "TPU7x": 1_153.5e12,
}


_COMMAND = command.Command("throughput [options]", about=__doc__)
_COMMAND.several("variants", "of the ViT", default=("B/16", "L/16"))
_COMMAND.whole("batch_size", "images", default=256)
_COMMAND.whole("resolution", "pixels along a side", default=224)
_COMMAND.whole("steps", "that are timed", default=20)
_COMMAND.text("remat_policy", "what the backward pass finds kept", default="none", shown="POLICY")
_COMMAND.text("trace", "folder for a profiler trace of three steps: where the time goes", shown="DIR")


def main(argv: Sequence[str]) -> int:
  """Prints the figures of each variant; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  print(json.dumps([measure(variant, flags) for variant in flags.variants], indent=2))
  return 0


def measure(variant: str, flags: Any) -> dict[str, Any]:
  """Returns one variant's figures, in bfloat16 with Adam, on one device."""
  model = dict(variant=variant, pool_type="gap", dtype_mm="bfloat16", scan=True, remat_policy=flags.remat_policy)
  config = dict(
    num_classes=1_000,
    loss="softmax_xent",
    model_name="vit",
    model=model,
    optax_name="scale_by_adam",
    optax=dict(mu_dtype="bfloat16"),
    lr=1e-3,
    wd=1e-4,
    grad_clip_norm=1.0,
    schedule=dict(decay_type="cosine", warmup_steps=10),
  )
  recipe = train_step.recipe_of(Classification, flags.batch_size, config)
  shape = (flags.batch_size, flags.resolution, flags.resolution, 3)
  batch = {"image": jnp.zeros(shape), "labels": jnp.zeros((flags.batch_size, 1_000))}
  compiled = train_step.compile_step(Classification(recipe), recipe, batch, devices=jax.devices()[:1])
  batch = jax.device_put(batch, compiled.placement.batch_sharding)
  state = compiled.fresh_state(batch)
  seconds = []
  for number in range(flags.steps + 5):
    began = time.perf_counter()
    state, metrics = compiled.update(state, batch)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - began)
    if flags.trace and number == 5:
      jax.profiler.start_trace(flags.trace)
    if flags.trace and number == 8:
      jax.profiler.stop_trace()
  step = statistics.median(seconds[5:])
  device = jax.devices()[0]
  peak = next((value for name, value in PEAK.items() if name in device.device_kind), None)
  flops = model_flops(state.params, variant, flags.resolution) * flags.batch_size
  memory = device.memory_stats() or {}
  return {
    "device": device.device_kind,
    "variant": variant,
    "batch_size": flags.batch_size,
    "images_per_second": round(flags.batch_size / step, 1),
    "model_tflops_per_second": round(flops / step / 1e12, 2),
    "share_of_peak": round(flops / step / peak, 3) if peak else None,
    "peak_memory_gb": round(memory["peak_bytes_in_use"] / 1e9, 2) if "peak_bytes_in_use" in memory else None,
  }


def model_flops(params: Params, variant: str, resolution: int) -> float:
  """Returns the FLOPs of an image, forward and backward: 6 N tokens + attention."""
  options = decode_variant(variant)
  tokens = (resolution // options["patch_size"][0]) ** 2
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  return 6 * count * tokens + 12 * options["depth"] * options["width"] * tokens**2


if __name__ == "__main__":
  command.run(main)
