"""A contrastive train step in each form of its loss: images/s and memory at several batch sizes, in one run.

    ./bazelw run //tools/bench:contrastive
    ./bazelw run --config=cuda //tools/bench:contrastive -- --image=B/16 --text=B --resolution=224 --tokens=64 \
        --vocab_size=32000 --dtype_mm=bfloat16 --batch_sizes=512,1024,2048

- images_per_second: of whole steps with Adam; the forms take turns, so that what the machine does meets them all.
- to_plain: time of a step relative to that of the plain form, the median over rounds.
- scratch_mb: what a step needs on each device beside the train state and the batch, as the compiler plans it.
- loss_scratch_mb: the same of the loss and its gradient alone, for embeddings of these sizes.
- peak_memory_gb: of all the run until then, where the device tells.

A form that does not fit the device is reported as "out of memory". With --compile_only nothing is run: for the memory
of batches that this machine could not take.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from core import command, sharding
from core.recipe.models.vit import decode_variant
from core.tasks import contrastive_losses
from core.tasks.contrastive import Contrastive
from tools.bench import train_step

_MB = 1e6


_COMMAND = command.Command("contrastive [options]", about=__doc__)
_COMMAND.text("image", "variant of the ViT", default="mu/8", shown="NAME")
_COMMAND.text("text", "variant of the text transformer", default="mu", shown="NAME")
_COMMAND.whole("resolution", "pixels along a side", default=16)
_COMMAND.whole("tokens", "of a text", default=4)
_COMMAND.whole("vocab_size", "kinds of tokens", default=1_000)
_COMMAND.choice("dtype_mm", ("float32", "bfloat16"), "in which the towers compute", default="float32")
_COMMAND.text("remat_policy", "what the backward pass finds kept", default="nothing_saveable", shown="POLICY")
_COMMAND.choice("loss", ("softmax", "sigmoid"), "which", default="sigmoid")
_COMMAND.several(
  "forms", "of the loss", default=contrastive_losses.FORMS, choices=contrastive_losses.FORMS, shown="FORM,FORM"
)
_COMMAND.several("batch_sizes", "over all devices", default=(512, 4_096), least=1, shown="N,N")
_COMMAND.whole("rounds", "how often each is measured", default=5)
_COMMAND.switch("compile_only", "run nothing")


def main(argv: Sequence[str]) -> int:
  """Prints the figures of each batch size; returns the exit status."""
  flags, _ = _COMMAND.parse(argv)
  devices = jax.devices()
  result: dict[str, Any] = {"device": f"{len(devices)} x {devices[0].device_kind}", **flags.given}
  result["results"] = [measure(flags, batch_size) for batch_size in flags.batch_sizes]
  print(json.dumps(result, indent=2))
  return 0


def measure(flags: Any, batch_size: int) -> dict[str, Any]:
  """Returns the figures of every form at one batch size."""
  found: dict[str, Any] = {form: {} for form in flags.forms}
  steps = {}
  for form in flags.forms:
    found[form]["loss_scratch_mb"] = round(_loss_scratch(flags, form, batch_size) / _MB, 1)
    try:
      steps[form] = Step(flags, form, batch_size)
    except jax.errors.JaxRuntimeError as error:
      found[form]["step"] = _out_of_memory(error)
      continue
    found[form]["scratch_mb"] = round(steps[form].scratch / _MB, 1)
  if not flags.compile_only:
    seconds = _in_turns(steps, flags.rounds, found)
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

  def __init__(self, flags: Any, form: str, batch_size: int):
    recipe = _recipe(flags, form, batch_size)

    def make_batch() -> dict[str, jax.Array]:
      image = (batch_size, flags.resolution, flags.resolution, 3)
      tokens = jax.random.randint(jax.random.key(2), (batch_size, flags.tokens), 0, flags.vocab_size)
      return {"image": jax.random.uniform(jax.random.key(1), image, minval=-1, maxval=1), "labels": tokens}

    self._step = train_step.compile_step(Contrastive(recipe), recipe, jax.eval_shape(make_batch))
    self._make_batch = jax.jit(make_batch, out_shardings=self._step.placement.batch_sharding)
    self.scratch = self._step.scratch

  def __call__(self) -> float:
    batch = self._make_batch()
    state = self._step.fresh_state(batch)
    state, _ = jax.block_until_ready(self._step.update(state, batch))  # The first may take longer.
    began = time.perf_counter()
    jax.block_until_ready(self._step.update(state, batch))
    return time.perf_counter() - began


def _in_turns(steps: dict[str, Step], rounds: int, found: dict[str, Any]) -> dict[str, list[float]]:
  """Returns the seconds of each step in every round; a form that runs out of memory is out."""
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


def _loss_scratch(flags: Any, form: str, batch_size: int) -> int:
  """Returns bytes on each device."""
  mesh = sharding.make_mesh()
  dim = decode_variant(flags.image)["width"]
  z = jax.ShapeDtypeStruct((batch_size, dim), jnp.float32, sharding=sharding.batch_sharding(mesh))
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
  loss = {"softmax": contrastive_losses.softmax_contrastive, "sigmoid": contrastive_losses.sigmoid_contrastive}
  scalars = (scalar, scalar) if flags.loss == "sigmoid" else (scalar,)

  def value(*args: jax.Array) -> jax.Array:
    return loss[flags.loss](*args, mesh=mesh, form=form)[0]

  program = jax.jit(jax.grad(value, argnums=range(2 + len(scalars)))).lower(z, z, *scalars).compile()
  return program.memory_analysis().temp_size_in_bytes


def _recipe(flags: Any, form: str, batch_size: int) -> Contrastive.Recipe:
  shared = dict(dtype_mm=flags.dtype_mm, scan=True, remat_policy=flags.remat_policy)
  model = dict(
    image=dict(variant=flags.image, pool_type="map", **shared),
    text=dict(variant=flags.text, vocab_size=flags.vocab_size, pool_type="last", **shared),
    out_dim=decode_variant(flags.image)["width"],
    temperature_init=10.0,
    bias_init=-10.0 if flags.loss == "sigmoid" else None,
  )
  config = dict(
    model_name="two_towers",
    model=model,
    loss=flags.loss,
    loss_form=form,
    mesh=[("data", -1)],
    optax_name="scale_by_adam",
    optax=dict(b2=0.95),
    lr=1e-3,
    wd=1e-4,
    grad_clip_norm=1.0,
    schedule=dict(decay_type="cosine", warmup_steps=10),
  )
  return train_step.recipe_of(Contrastive, batch_size, config)


def _out_of_memory(error: jax.errors.JaxRuntimeError) -> str:
  """Returns what is told of an error; raises what is another one."""
  if "RESOURCE_EXHAUSTED" not in str(error):
    raise error
  return "out of memory"


if __name__ == "__main__":
  command.run(main)
