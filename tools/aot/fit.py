"""Whether a step fits into the memory of its devices, and what would make it fit."""

import math
from collections.abc import Iterator, Mapping

from core import sharding
from core.recipe.recipe import Recipe
from tools.aot.chips import CHIPS, Topology
from tools.aot.program import Step
from tools.aot.report import size

# Of memory; the rest is for what the compiler cannot pack, and the program.
_USABLE = 0.9
REFUSAL = "config does not fit"


def refusal(
  step: Step, recipe: Recipe, topology: Topology, arguments: Mapping[str, int], temporaries: float, hbm: float
) -> str:
  """Returns one line: what is needed, what there is, and the two best remedies.

  Args:
    step: what does not fit.
    recipe: its recipe.
    topology: its devices.
    arguments: bytes a device by what they are: params, optimizer, batch.
    temporaries: bytes a device.
    hbm: bytes that a device has.
  """
  total = sum(arguments.values())
  found = list(_remedies(step, recipe, topology, arguments, temporaries, hbm))[:2]
  needed = f"{size(total)} of arguments and {size(temporaries)} of temporaries a device"
  remedies = "".join(f"; {'or' if n else 'try'} {one}" for n, one in enumerate(found))
  return f"{REFUSAL}: {needed} are needed, {topology.name} has {size(hbm)}{remedies}"


def _remedies(step, recipe, topology, arguments, temporaries, hbm) -> Iterator[str]:
  """Yields what would help, the best first.

  Sizes are estimates: arguments are split, temporaries shrink with the batch.
  """
  state = sum(bytes_ for name, bytes_ in arguments.items() if name != "batch")
  splits = "fsdp" in step.mesh.axis_names or recipe.sharding_strategy
  if state > 0.4 * hbm and not splits and len(topology.devices) > 1:
    yield f"--config.mesh=auto, which leaves about {size(state / len(topology.devices))} of parameters and optimizer"
  for key in _without_remat(recipe):
    yield f"--config.{key}.remat_policy=nothing_saveable, which keeps one activation a block and computes a third more"
  room = _USABLE * hbm - state
  batch = recipe.input.batch_size
  local = batch // sharding.batch_parts(next(iter(step.batch.values())).sharding)
  times = 2 ** math.ceil(math.log2(max(temporaries / room, 2))) if room > 0 else 0
  if times and local % times == 0 and hasattr(step.state, "opt_state"):
    accumulate = times * recipe.grad_accum_steps
    yield f"--config.grad_accum_steps={accumulate}, which leaves about {size(temporaries / times)} of temporaries"
  if larger := _larger(topology, batch, (state + temporaries) / (_USABLE * hbm)):
    yield f"--topology={larger}"
  if times and local >= times:
    yield f"--config.input.batch_size={batch // times}"


def _without_remat(recipe: Recipe) -> Iterator[str]:
  """Yields the keys of the models that could rematerialize and do not."""
  model = getattr(recipe, "model", None)
  towers = {f"model.{side}": getattr(model, side, None) for side in ("image", "text")}
  for key, options in {"model": model, **towers}.items():
    if hasattr(options, "remat_policy"):
      implied = "nothing_saveable" if options.scan else "none"
      if (options.remat_policy or implied) == "none":
        yield key


def _larger(topology: Topology, batch: int, times: float) -> str | None:
  """Returns the smallest usual topology of the same chip with so many times the chips; it must divide the batch."""
  if topology.chip is None:
    return None
  kind = topology.name.partition(":")[0]
  for shape in sorted(CHIPS[kind].shapes, key=lambda text: math.prod(map(int, text.split("x")))):
    devices = math.prod(map(int, shape.split("x"))) * topology.devices_per_chip
    if devices >= times * len(topology.devices) and devices > len(topology.devices) and batch % devices == 0:
      return f"{kind}:{shape}"
  return None
