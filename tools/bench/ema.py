"""What an average of the parameters costs in each of its forms, and how far it is from the one in float32, in one run.

    ./bazelw run //tools/bench:ema
    ./bazelw run --config=cuda //tools/bench:ema -- --variant=B/16 --batch_size=256 --resolution=224

- bytes_per_parameter: of the average's state.
- update_ns_per_parameter: averaging alone, whatever the model.
- step_to_none: time of a whole train step, relative to one without an average.
- scratch_bytes_per_parameter: what a train step needs for the time being, beyond one without an average.
- error: root mean square of the difference to the float32 average, relative to that of the average, after training
  `projects/vit/configs/digits.py` at a constant rate, all forms along the same run; and the test accuracy of each.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core import config as config_lib
from core.data import feed, pipeline
from core.evaluators import registry as evaluators
from core.optim import ema, optimizer
from core.sharding import batch_sharding, make_mesh
from core.state import TrainState
from core.tasks.classification import Classification
from core.training.step import make_update
from projects.vit import train

FORMS = {
  "none": None,
  "float32": dict(dtype="float32"),
  "compensated": dict(rounding="compensated"),
  "stochastic": dict(rounding="stochastic"),
  "nearest": dict(rounding="nearest"),
}


def main() -> None:
  parser = argparse.ArgumentParser(prog="ema", description=__doc__.split("\n\n")[0])
  parser.add_argument("--variant", default="S/16")
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--resolution", type=int, default=96)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--decay", type=float, default=0.999)
  parser.add_argument("--training_steps", type=int, default=3_000)
  arguments = parser.parse_args()
  result = {"device": jax.devices()[0].device_kind, "variant": arguments.variant}
  result |= {"parameters": _count(_shapes(arguments.variant, arguments.resolution))}
  costs, errors = measure_cost(arguments), measure_error(arguments)
  print(json.dumps(result | {form: costs[form] | errors.get(form, {}) for form in FORMS}, indent=2))


def measure_cost(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
  """Times and bytes of each form; the forms take turns, so that what the machine does meets them all."""
  steps = {form: _make_step(form, arguments) for form in FORMS}
  averaging = {form: _make_averaging(form, arguments) for form in FORMS if form != "none"}
  seconds = {form: [] for form in FORMS}
  alone = {form: [] for form in averaging}
  for _ in range(arguments.rounds):
    for form, (step, _) in steps.items():
      seconds[form].append(_timed(step))
    for form, average in averaging.items():
      alone[form].append(_timed(average))
  shapes = _shapes(arguments.variant, arguments.resolution)
  count = _count(shapes)
  found = {}
  for form, (_, memory) in steps.items():
    found[form] = {"step_ms": round(1e3 * statistics.median(seconds[form]), 2)}
    if form != "none":
      state = jax.eval_shape(ema.track(arguments.decay, **FORMS[form]).init, shapes)
      found[form] |= {
        "step_to_none": round(statistics.median(a / b for a, b in zip(seconds[form], seconds["none"])), 4),
        "update_ns_per_parameter": round(1e9 * statistics.median(alone[form]) / count, 3),
        "bytes_per_parameter": round(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / count, 3),
        "scratch_bytes_per_parameter": round((memory - steps["none"][1]) / count, 3),
      }
  return found


def measure_error(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
  """Trains on the digits with all the averages at once, and compares them at the end."""
  config = config_lib.load(str(Path(train.__file__).parent / "configs" / "digits.py"))
  with config.unlocked():
    config.schedule = dict(warmup_steps=arguments.training_steps // 20)
  task, where = Classification(config), batch_sharding(make_mesh())
  data = pipeline.train_batches(config.input, seed=0, start_step=0)
  batches = feed.to_devices(data, where)
  params = jax.jit(lambda batch: task.init(jax.random.key(0), batch)["params"])(next(batches))
  size = dict(total_steps=arguments.training_steps, batch_size=config.input.batch_size, data_size=data.num_examples)
  averages = {form: ema.track(arguments.decay, **options) for form, options in FORMS.items() if options}
  tx = optax.named_chain(("optimizer", optimizer.make(config, params, sched_kw=size)[0]), *averages.items())
  state = TrainState.create(params, jax.jit(tx.init)(params))
  update = jax.jit(make_update(task, tx, seed=0), donate_argnums=0)
  for _ in range(arguments.training_steps):
    state, metrics = update(state, next(batches))
    jax.block_until_ready(metrics)
  batches.close()
  evaluator = evaluators.make("test", config.evals.test, predict=task.predict, sharding=where)
  states = {"none": state} | {
    form: state.replace(params=ema.params_of(state.opt_state[form], state.params)) for form in averages
  }
  flat = {form: np.concatenate([np.ravel(x) for x in jax.tree.leaves(each.params)]) for form, each in states.items()}
  rms = lambda x: float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
  return {
    form: {
      "error": float(f"{rms(flat[form] - flat['float32']) / rms(flat['float32']):.2g}"),
      "digits_accuracy": round(evaluator.run(each)["prec@1"], 4),
    }
    for form, each in states.items()
  }


def _make_step(form: str, arguments: argparse.Namespace) -> tuple[Any, int]:
  """A train step with Adam, and its bytes of scratch."""
  config = config_lib.ConfigDict(
    dict(
      num_classes=1_000,
      model_name="vit",
      model=dict(variant=arguments.variant, scan=True),
      optax_name="scale_by_adam",
      lr=1e-3,
    )
  )
  if FORMS[form]:
    config.ema = dict(decay=arguments.decay, **FORMS[form])
  task = Classification(config)
  image = jnp.zeros((arguments.batch_size, arguments.resolution, arguments.resolution, 3))
  batch = {"image": image, "labels": jnp.zeros((arguments.batch_size, 1_000))}
  params = jax.jit(lambda: task.init(jax.random.key(0), batch)["params"])()
  tx, _ = optimizer.make(config, params, sched_kw=dict(total_steps=1_000, batch_size=1, data_size=1))
  state = jax.jit(lambda params: TrainState.create(params, tx.init(params)))(params)
  update = jax.jit(make_update(task, tx, seed=0), donate_argnums=0).lower(state, batch).compile()

  def step() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(update(state, batch))

  return step, update.memory_analysis().temp_size_in_bytes


def _make_averaging(form: str, arguments: argparse.Namespace) -> Any:
  """An update of the average alone."""
  tx = ema.track(arguments.decay, **FORMS[form])
  make = lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)
  params = jax.jit(lambda: jax.tree.map(make, _shapes(arguments.variant, arguments.resolution)))()
  zeros, state = jax.tree.map(jnp.zeros_like, params), jax.jit(tx.init)(params)
  update = jax.jit(lambda state, params, zeros: tx.update(zeros, state, params)[1], donate_argnums=0)

  def average() -> None:
    nonlocal state
    state = jax.block_until_ready(update(state, params, zeros))

  average()
  return average


def _shapes(variant: str, resolution: int) -> Any:
  config = config_lib.ConfigDict(dict(num_classes=1_000, model_name="vit", model=dict(variant=variant, scan=True)))
  batch = {"image": jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)}
  return jax.eval_shape(lambda batch: Classification(config).init(jax.random.key(0), batch)["params"], batch)


def _count(shapes: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _timed(call: Any) -> float:
  began = time.perf_counter()
  call()
  return time.perf_counter() - began


if __name__ == "__main__":
  main()
