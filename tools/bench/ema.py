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

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core import command, data_files
from core.data import feed, pipeline
from core.optim import ema, optimizer
from core.recipe import load
from core.recipe.parse import parse
from core.sharding import batch_sharding, make_mesh
from core.state import Params, TrainState
from core.tasks.classification import Classification
from core.training.prepare import make_evaluators
from core.training.step import make_update
from tools.bench import train_step

FORMS = {
  "none": None,
  "float32": dict(dtype="float32"),
  "compensated": dict(rounding="compensated"),
  "stochastic": dict(rounding="stochastic"),
  "nearest": dict(rounding="nearest"),
}


_COMMAND = command.Command("ema [options]", about=__doc__)
_COMMAND.text("variant", "of the ViT", default="S/16", shown="NAME")
_COMMAND.whole("batch_size", "images", default=8)
_COMMAND.whole("resolution", "pixels along a side", default=96)
_COMMAND.whole("rounds", "how often each is measured", default=7)
_COMMAND.number("decay", "of the average", default=0.999)
_COMMAND.whole("training_steps", "of the run that tells how far the forms are from each other", default=3_000)


def main(argv: Sequence[str]) -> int:
  """Prints the figures of each form; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  result = {"device": jax.devices()[0].device_kind, "variant": flags.variant}
  result |= {"parameters": _count(_shapes(flags.variant, flags.resolution))}
  costs, errors = measure_cost(flags), measure_error(flags)
  print(json.dumps(result | {form: costs[form] | errors.get(form, {}) for form in FORMS}, indent=2))
  return 0


def measure_cost(flags: Any) -> dict[str, dict[str, float]]:
  """Returns times and bytes of each form; the forms take turns, so that what the machine does meets them all."""
  steps = {form: _make_step(form, flags) for form in FORMS}
  averaging = {form: _make_averaging(form, flags) for form in FORMS if form != "none"}
  seconds = {form: [] for form in FORMS}
  alone = {form: [] for form in averaging}
  for _ in range(flags.rounds):
    for form, (step, _) in steps.items():
      seconds[form].append(_timed(step))
    for form, average in averaging.items():
      alone[form].append(_timed(average))
  shapes = _shapes(flags.variant, flags.resolution)
  count = _count(shapes)
  found = {}
  for form, (_, memory) in steps.items():
    found[form] = {"step_ms": round(1e3 * statistics.median(seconds[form]), 2)}
    if form != "none":
      state = jax.eval_shape(ema.track(flags.decay, **FORMS[form]).init, shapes)
      found[form] |= {
        "step_to_none": round(statistics.median(a / b for a, b in zip(seconds[form], seconds["none"])), 4),
        "update_ns_per_parameter": round(1e9 * statistics.median(alone[form]) / count, 3),
        "bytes_per_parameter": round(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / count, 3),
        "scratch_bytes_per_parameter": round((memory - steps["none"][1]) / count, 3),
      }
  return found


def measure_error(flags: Any) -> dict[str, dict[str, float]]:
  """Trains on the digits with all the averages at once, and returns how they compare at the end."""
  file = data_files.find("projects/vit/configs/digits.py")
  schedule = dict(warmup_steps=flags.training_steps // 20)
  config = load.read(str(file), [("total_steps", str(flags.training_steps))])
  recipe = parse(Classification.Recipe, {**config, "schedule": schedule})
  task, where = Classification(recipe), batch_sharding(make_mesh())
  data = pipeline.train_batches(recipe.input, seed=0, start_step=0)
  batches = feed.to_devices(data, where)
  params = jax.jit(lambda batch: task.init(jax.random.key(0), batch)["params"])(next(batches))
  size = dict(total_steps=flags.training_steps, batch_size=recipe.input.batch_size, data_size=data.num_examples)
  averages = {form: ema.track(flags.decay, **options) for form, options in FORMS.items() if options}
  tx = optax.named_chain(("optimizer", optimizer.make(recipe, params, sched_kw=size)[0]), *averages.items())
  state = TrainState.create({"params": params}, jax.jit(tx.init)(params))
  update = jax.jit(make_update(task, tx, seed=0), donate_argnums=0)
  for _ in range(flags.training_steps):
    state, metrics = update(state, next(batches))
    jax.block_until_ready(metrics)
  batches.close()
  return _compare(recipe, task, where, state, tuple(averages))


def _compare(
  recipe: Classification.Recipe,
  task: Classification,
  where: jax.sharding.NamedSharding,
  state: TrainState,
  forms: Sequence[str],
) -> dict[str, dict[str, float]]:
  """Returns the error and the accuracy of the raw parameters and of each average in an optimizer's state."""
  (evaluator,) = make_evaluators(recipe, task.predict, batch_sharding=where, output_dir=Path("unused")).values()
  params = {"none": state.params}
  params |= {form: ema.params_of(state.opt_state[form], state.params) for form in forms}
  flat = {form: np.concatenate([np.ravel(x) for x in jax.tree.leaves(each)]) for form, each in params.items()}
  return {
    form: {
      "error": float(f"{_rms(flat[form] - flat['float32']) / _rms(flat['float32']):.2g}"),
      "digits_accuracy": round(evaluator.run({"params": each})["prec@1"], 4),
    }
    for form, each in params.items()
  }


def _rms(x: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def _make_step(form: str, flags: Any) -> tuple[Callable[[], None], int]:
  """Returns a train step with Adam, and its bytes of scratch."""
  average = dict(ema=dict(decay=flags.decay, **FORMS[form])) if FORMS[form] else {}
  recipe = train_step.recipe_of(Classification, flags.batch_size, _config(flags.variant) | average)
  image = jnp.zeros((flags.batch_size, flags.resolution, flags.resolution, 3))
  batch = {"image": image, "labels": jnp.zeros((flags.batch_size, 1_000))}
  compiled = train_step.compile_step(Classification(recipe), recipe, batch)
  batch = jax.device_put(batch, compiled.placement.batch_sharding)
  state = compiled.fresh_state(batch)

  def step() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(compiled.update(state, batch))

  return step, compiled.scratch


def _config(variant: str) -> dict[str, Any]:
  model = dict(variant=variant, scan=True)
  return dict(
    num_classes=1_000, loss="softmax_xent", model_name="vit", model=model, optax_name="scale_by_adam", lr=1e-3
  )


def _make_averaging(form: str, flags: Any) -> Callable[[], None]:
  """Returns an update of the average alone."""
  tx = ema.track(flags.decay, **FORMS[form])

  def make(x: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)

  params = jax.jit(lambda: jax.tree.map(make, _shapes(flags.variant, flags.resolution)))()
  zeros, state = jax.tree.map(jnp.zeros_like, params), jax.jit(tx.init)(params)
  update = jax.jit(lambda state, params, zeros: tx.update(zeros, state, params)[1], donate_argnums=0)

  def average() -> None:
    nonlocal state
    state = jax.block_until_ready(update(state, params, zeros))

  average()
  return average


def _shapes(variant: str, resolution: int) -> Params:
  task = Classification(train_step.recipe_of(Classification, 1, _config(variant)))
  batch = {"image": jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)}
  return jax.eval_shape(lambda batch: task.init(jax.random.key(0), batch)["params"], batch)


def _count(shapes: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _timed(call: Any) -> float:
  began = time.perf_counter()
  call()
  return time.perf_counter() - began


if __name__ == "__main__":
  command.run(main)
