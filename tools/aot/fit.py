"""Whether a step fits into the memory of its devices, and what would make it fit."""

import math
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from core import sharding
from tools.aot.chips import CHIPS, Topology
from tools.aot.program import Step
from tools.aot.report import size

# Of memory; the rest is for what the compiler cannot pack, and the program.
_USABLE = 0.9
REFUSAL = "config does not fit"
_REMAT_MODELS = ("vit", "flexi_vit", "text_transformer", "bert")


def refusal(
  step: Step, config: ConfigDict, topology: Topology, arguments: Mapping[str, int], temporaries: float, hbm: float
) -> str:
  """One line: what is needed, what there is, and the two best remedies.

  Args:
    step: what does not fit.
    config: its config.
    topology: its devices.
    arguments: bytes a device by what they are: params, optimizer, batch.
    temporaries: bytes a device.
    hbm: bytes that a device has.
  """
  total = sum(arguments.values())
  found = list(_remedies(step, config, topology, arguments, temporaries, hbm))[:2]
  needed = f"{size(total)} of arguments and {size(temporaries)} of temporaries a device"
  remedies = "".join(f"; {'or' if n else 'try'} {one}" for n, one in enumerate(found))
  return f"{REFUSAL}: {needed} are needed, {topology.name} has {size(hbm)}{remedies}"


def _remedies(step, config, topology, arguments, temporaries, hbm) -> Iterator[str]:
  """What would help, the best first; sizes are estimates: arguments are split, temporaries shrink with the batch."""
  state = sum(bytes_ for name, bytes_ in arguments.items() if name != "batch")
  splits = "fsdp" in step.mesh.axis_names or config.get("sharding_strategy")
  if state > 0.4 * hbm and not splits and len(topology.devices) > 1:
    yield f"--config.mesh=auto, which leaves about {size(state / len(topology.devices))} of parameters and optimizer"
  for key in _without_remat(config):
    yield f"--config.{key}.remat_policy=nothing_saveable, which keeps one activation a block and computes a third more"
  room = _USABLE * hbm - state
  batch = config.input.batch_size
  local = batch // sharding.batch_parts(next(iter(step.batch.values())).sharding)
  times = 2 ** math.ceil(math.log2(max(temporaries / room, 2))) if room > 0 else 0
  if times and local % times == 0 and hasattr(step.state, "opt_state"):
    accumulate = times * config.get("grad_accum_steps", 1)
    yield f"--config.grad_accum_steps={accumulate}, which leaves about {size(temporaries / times)} of temporaries"
  if larger := _larger(topology, batch, (state + temporaries) / (_USABLE * hbm)):
    yield f"--topology={larger}"
  if times and local >= times:
    yield f"--config.input.batch_size={batch // times}"


def _without_remat(config: ConfigDict) -> Iterator[str]:
  """Keys of the models that could rematerialize and do not."""
  model = config.get("model", {})
  towers = {f"model.{side}": (model.get(side) or {}, model.get(f"{side}_model")) for side in ("image", "text")}
  for key, (options, name) in {"model": (model, config.get("model_name")), **towers}.items():
    implied = "nothing_saveable" if options.get("scan") else "none"
    if name in _REMAT_MODELS and (options.get("remat_policy") or implied) == "none":
      yield key


def _larger(topology: Topology, batch: int, times: float) -> str | None:
  """The smallest usual topology of the same chip with so many times the chips; it must divide the batch."""
  if topology.chip is None:
    return None
  kind = topology.name.partition(":")[0]
  for shape in sorted(CHIPS[kind].shapes, key=lambda text: math.prod(map(int, text.split("x")))):
    devices = math.prod(map(int, shape.split("x"))) * topology.devices_per_chip
    if devices >= times * len(topology.devices) and devices > len(topology.devices) and batch % devices == 0:
      return f"{kind}:{shape}"
  return None
