"""A contrastive train step in each form of its loss: images/s and memory at several batch sizes, in one run.

    ./bazelw run //tools/bench:contrastive
    ./bazelw run --config=cuda //tools/bench:contrastive -- --image=B/16 --text=B --resolution=224 --tokens=64 \
        --vocab_size=32000 --dtype_mm=bfloat16 --batch_sizes 512 1024 2048

- images_per_second: of whole steps with Adam; the forms take turns, so that what the machine does meets them all.
- to_plain: time of a step relative to that of the plain form, the median over rounds.
- scratch_mb: what a step needs on each device beside the train state and the batch, as the compiler plans it.
- loss_scratch_mb: the same of the loss and its gradient alone, for embeddings of these sizes.
- peak_memory_gb: of all the run until then, where the device tells.

A form that does not fit the device is reported as "out of memory". With --compile_only nothing is run: for the memory
of batches that this machine could not take.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from core import config as config_lib
from core import sharding
from core.models import vit
from core.optim import optimizer
from core.state import TrainState
from core.tasks import contrastive_losses
from core.tasks.contrastive import Contrastive
from core.training.step import make_update

_MB = 1e6


def main() -> None:
  parser = argparse.ArgumentParser(prog="contrastive", description=__doc__.split("\n\n")[0])
  parser.add_argument("--image", default="mu/8", help="variant of the ViT")
  parser.add_argument("--text", default="mu", help="variant of the text transformer")
  parser.add_argument("--resolution", type=int, default=16)
  parser.add_argument("--tokens", type=int, default=4)
  parser.add_argument("--vocab_size", type=int, default=1_000)
  parser.add_argument("--dtype_mm", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--remat_policy", default="nothing_saveable")
  parser.add_argument("--loss", default="sigmoid", choices=("softmax", "sigmoid"))
  parser.add_argument("--forms", nargs="+", default=contrastive_losses.FORMS, choices=contrastive_losses.FORMS)
  parser.add_argument("--batch_sizes", nargs="+", type=int, default=[512, 4_096])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--compile_only", action="store_true")
  arguments = parser.parse_args()
  devices = jax.devices()
  result: dict[str, Any] = {"device": f"{len(devices)} x {devices[0].device_kind}", **vars(arguments)}
  result["results"] = [measure(arguments, batch_size) for batch_size in arguments.batch_sizes]
  print(json.dumps(result, indent=2))


def measure(arguments: argparse.Namespace, batch_size: int) -> dict[str, Any]:
  """The figures of every form at one batch size."""
  found: dict[str, Any] = {form: {} for form in arguments.forms}
  steps = {}
  for form in arguments.forms:
    found[form]["loss_scratch_mb"] = round(_loss_scratch(arguments, form, batch_size) / _MB, 1)
    try:
      steps[form] = Step(arguments, form, batch_size)
    except jax.errors.JaxRuntimeError as error:
      found[form]["step"] = _out_of_memory(error)
      continue
    found[form]["scratch_mb"] = round(steps[form].scratch / _MB, 1)
  if not arguments.compile_only:
    seconds = _in_turns(steps, arguments.rounds, found)
    for form, each in seconds.items():
      found[form]["images_per_second"] = round(batch_size / statistics.median(each), 1)
      if "plain" in seconds:
        ratio = statistics.median(mine / plain for mine, plain in zip(each, seconds["plain"]))
        found[form]["to_plain"] = round(ratio, 3)
  return {"batch_size": batch_size, **found}


class Step:
  """A compiled train step; called, it takes one and returns the seconds that it took.

  Only while it is called does it hold a train state and a batch, so that each form has the device to itself.

  Raises:
    jax.errors.JaxRuntimeError: it does not fit the device.
  """

  def __init__(self, arguments: argparse.Namespace, form: str, batch_size: int):
    config = _config(arguments, form)
    task = Contrastive(config)
    mesh = sharding.make_mesh()
    split, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)

    def make_batch(size: int = batch_size) -> dict[str, jax.Array]:
      image = (size, arguments.resolution, arguments.resolution, 3)
      tokens = jax.random.randint(jax.random.key(2), (size, arguments.tokens), 0, arguments.vocab_size)
      return {"image": jax.random.uniform(jax.random.key(1), image, minval=-1, maxval=1), "labels": tokens}

    init = lambda: task.init(jax.random.key(0), make_batch(1))["params"]
    tx, _ = optimizer.make(config, jax.eval_shape(init), sched_kw=dict(total_steps=1_000, batch_size=1, data_size=1))
    create = lambda params: TrainState.create(params, tx.init(params))
    self._make_state = jax.jit(lambda: create(init()), out_shardings=everywhere)
    self._make_batch = jax.jit(make_batch, out_shardings=split)
    shapes = [
      jax.tree.map(lambda x, where=where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), jax.eval_shape(make))
      for make, where in ((self._make_state, everywhere), (self._make_batch, split))
    ]
    self._update = jax.jit(make_update(task, tx, seed=0), donate_argnums=0).lower(*shapes).compile()
    self.scratch = self._update.memory_analysis().temp_size_in_bytes

  def __call__(self) -> float:
    state, batch = self._make_state(), self._make_batch()
    state, _ = jax.block_until_ready(self._update(state, batch))  # The first may take longer.
    began = time.perf_counter()
    jax.block_until_ready(self._update(state, batch))
    return time.perf_counter() - began


def _in_turns(steps: dict[str, Step], rounds: int, found: dict[str, Any]) -> dict[str, list[float]]:
  """Seconds of each step in every round; a form that runs out of memory is out."""
  seconds: dict[str, list[float]] = {form: [] for form in steps}
  for _ in range(rounds):
    for form, step in steps.items():
      if form not in seconds:
        continue
      try:
        seconds[form].append(step())
      except jax.errors.JaxRuntimeError as error:
        found[form]["step"] = _out_of_memory(error)
        del seconds[form]
        continue
      memory = jax.devices()[0].memory_stats() or {}
      if "peak_bytes_in_use" in memory:
        found[form].setdefault("peak_memory_gb", round(memory["peak_bytes_in_use"] / 1e9, 2))
  return seconds


def _loss_scratch(arguments: argparse.Namespace, form: str, batch_size: int) -> int:
  """Bytes on each device."""
  mesh = sharding.make_mesh()
  dim = _config(arguments, form).model.out_dim
  z = jax.ShapeDtypeStruct((batch_size, dim), jnp.float32, sharding=sharding.batch_sharding(mesh))
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
  loss = {"softmax": contrastive_losses.softmax_contrastive, "sigmoid": contrastive_losses.sigmoid_contrastive}
  scalars = (scalar, scalar) if arguments.loss == "sigmoid" else (scalar,)
  fn = lambda *args: loss[arguments.loss](*args, mesh=mesh, form=form)[0]
  program = jax.jit(jax.grad(fn, argnums=range(2 + len(scalars)))).lower(z, z, *scalars).compile()
  return program.memory_analysis().temp_size_in_bytes


def _config(arguments: argparse.Namespace, form: str) -> config_lib.ConfigDict:
  shared = dict(dtype_mm=arguments.dtype_mm, scan=True, remat_policy=arguments.remat_policy)
  text = dict(variant=arguments.text, vocab_size=arguments.vocab_size, pool_type="last", **shared)
  width = vit.decode_variant(arguments.image)["width"]
  return config_lib.ConfigDict(
    dict(
      model_name="two_towers",
      model=dict(
        image=dict(variant=arguments.image, pool_type="map", **shared),
        text=text,
        out_dim=width,
        temperature_init=10.0,
        bias_init=-10.0 if arguments.loss == "sigmoid" else None,
      ),
      loss=arguments.loss,
      loss_form=form,
      optax_name="scale_by_adam",
      optax=dict(b2=0.95),
      lr=1e-3,
      wd=1e-4,
      grad_clip_norm=1.0,
      schedule=dict(decay_type="cosine", warmup_steps=10),
    )
  )


def _out_of_memory(error: jax.errors.JaxRuntimeError) -> str:
  """Raises what is another error."""
  if "RESOURCE_EXHAUSTED" not in str(error):
    raise error
  return "out of memory"


if __name__ == "__main__":
  main()
