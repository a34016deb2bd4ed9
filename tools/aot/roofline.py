"""The least time that a step can take on a topology: the slowest of arithmetic, memory and interconnect.

Each is what the program asks for, divided by what a chip can do at its peak; the three are taken to overlap wholly, so
a real step takes longer than `seconds`, and rarely longer than `seconds_if_nothing_overlaps`. The interconnect is taken
to be used as well as its topology allows: a ring along every dimension that the devices of a transfer span, all of them
at once, both ways. Latency, the network between slices and the host are left out, and so is the time of what is
neither a matrix product nor bound by memory.
"""

import dataclasses
import math
from collections.abc import Sequence

from tools.aot.chips import Topology
from tools.aot.hlo_cost import Collective, Cost


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step by what limits it, and the model's FLOPs as a share of the peak (MFU)."""

  compute: float
  memory: float
  interconnect: float
  mfu: float

  @property
  def seconds(self) -> float:
    return max(self.compute, self.memory, self.interconnect)

  @property
  def seconds_if_nothing_overlaps(self) -> float:
    return self.compute + self.memory + self.interconnect

  @property
  def limit(self) -> str:
    return max(("compute", "memory", "interconnect"), key=lambda name: getattr(self, name))


def estimate(cost: Cost, model_flops: float, topology: Topology) -> Roofline | None:
  """Returns the times; None for devices of which nothing is known."""
  chip = topology.chip
  if chip is None:
    return None
  share = topology.devices_per_chip
  peak, bandwidth = chip.flops / share, chip.hbm_bandwidth / share
  transfers = sum(each.times * transfer_seconds(each, topology) for each in cost.collectives)
  found = Roofline(cost.flops / peak, cost.bytes / bandwidth, transfers, 0.0)
  mfu = model_flops / (len(topology.devices) * peak * found.seconds) if found.seconds else 0.0
  return dataclasses.replace(found, mfu=mfu)


def transfer_seconds(collective: Collective, topology: Topology) -> float:
  """Returns the seconds of one transfer, with nothing else on the links."""
  chip, size = topology.chip, collective.group
  link = chip.ici_bandwidth / (2 * chip.axes) / topology.devices_per_chip
  spanned = _spanned(size / topology.devices_per_chip, topology.shape)
  links = sum(2 if n % chip.wraps_at == 0 else 1 for n in spanned) or 2 * chip.axes
  share = collective.bytes * (size - 1) / size
  match collective.kind:
    case "all-gather" | "reduce-scatter":
      return share / (links * link)
    case "all-reduce":  # A reduce-scatter and an all-gather.
      return 2 * share / (links * link)
    case "all-to-all":  # Every byte crosses a quarter of a ring, or a third of a line, on its way.
      hops = sum(n / 4 if n % chip.wraps_at == 0 else n / 3 for n in spanned) or 1
      return share * hops / (links * link)
    case _:  # To a neighbour, over one link.
      return collective.bytes / link


def _spanned(chips: float, shape: Sequence[int]) -> list[int]:
  """Returns the dimensions of a topology that a group of so many chips spans, the largest first."""
  dimensions = []
  for n in sorted((n for n in shape if n > 1), reverse=True):
    if math.prod(dimensions) >= chips:
      break
    dimensions.append(n)
  return dimensions
