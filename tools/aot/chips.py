"""The chips that a step can be compiled for, what they can do, and the topologies in which they come.

Peak FLOP/s (bfloat16), memory, its bandwidth and the interconnect of a chip are as reported by, and not measured here:

    v2, v3       N. Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural networks"
    v4           N. Jouppi et al. 2023, "TPU v4: an optically reconfigurable supercomputer for machine learning"
    v5e to tpu7x Cloud TPU's documentation, "System architecture", the pages of these versions

The interconnect is what all links of a chip send in one direction, half of what the documentation states for both: the
sum of four links of a two-dimensional or six of a three-dimensional torus. A chip has one TensorCore (v5e, v6e) or two.
Two are a device each (v2, v3, tpu7x), with half of the chip's memory, or one together (v4, v5p), which libtpu calls
"megacore". Hosts' CPUs and other devices have no figures here: they get no estimate of time.
"""

import contextlib
import dataclasses
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import jax

from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip.

  Attributes:
    flops: peak of bfloat16 matrix products, FLOP/s.
    hbm: bytes of memory.
    hbm_bandwidth: bytes/s.
    ici_bandwidth: bytes/s that all its links send together, in one direction.
    devices: that JAX has of it.
    axes: dimensions of its torus.
    wraps_at: a dimension of the topology that is a multiple of this is a ring, a smaller one a line.
    shapes: the topologies that are usual.
    config: what libtpu calls a chip of so many devices; None where it has no other.
  """

  flops: float
  hbm: float
  hbm_bandwidth: float
  ici_bandwidth: float
  devices: int
  axes: int
  wraps_at: int
  shapes: tuple[str, ...]
  config: str | None = None


_GB, _GIB = 1e9, 2.0**30
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

CHIPS = {
  "v2": Chip(46e12, 16 * _GIB, 700 * _GB, 4 * 62 * _GB, 2, 2, 16, ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16")),
  "v3": Chip(123e12, 32 * _GIB, 900 * _GB, 4 * 82 * _GB, 2, 2, 32, ("2x2", "4x4", "4x8", "8x8", "16x16", "32x32")),
  "v4": Chip(275e12, 32 * _GIB, 1_200 * _GB, 6 * 50 * _GB, 1, 3, 4, (*_CUBIC, "16x16x16"), "megacore"),
  "v5e": Chip(197e12, 16 * _GIB, 819 * _GB, 4 * 50 * _GB, 1, 2, 16, _FLAT),
  "v5p": Chip(459e12, 95 * _GIB, 2_765 * _GB, 6 * 100 * _GB, 1, 3, 4, ("1x1x1", *_CUBIC, "16x16x16", "16x16x24")),
  "v6e": Chip(918e12, 32 * _GIB, 1_638 * _GB, 4 * 100 * _GB, 1, 2, 16, _FLAT),
  "tpu7x": Chip(2_307e12, 192 * _GIB, 7_380 * _GB, 6 * 100 * _GB, 2, 3, 4, ("1x1x1", *_CUBIC, "16x16x16", "16x16x24")),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for.

  Attributes:
    name: "v5e:4x4", "cpu:8".
    devices: as JAX wants them.
    chip: what is known of each; None where nothing is.
    shape: chips along each dimension.
    devices_per_chip: 2 for a TPU whose TensorCores are devices of their own.
  """

  name: str
  devices: Sequence[jax.Device]
  chip: Chip | None
  shape: tuple[int, ...]

  @property
  def devices_per_chip(self) -> int:
    return self.chip.devices if self.chip else 1

  @property
  def hbm(self) -> float | None:
    """Returns the bytes of memory of a device."""
    return self.chip.hbm / self.devices_per_chip if self.chip else None


def known() -> str:
  """Returns all topologies, for the help."""
  return "; ".join(f"{kind}:{{{','.join(chip.shapes)}}}" for kind, chip in CHIPS.items()) + "; cpu:N; gpu:N"


def topology(name: str) -> Topology:
  """Returns the topology of a name; of a TPU's, no TPU need be there.

  Raises:
    UserError: there is none of that name, or what it needs is not here.
  """
  kind, _, size = name.partition(":")
  if kind in ("cpu", "gpu"):
    return _attached(name, kind, size)
  shape = tuple(int(n) for n in size.split("x")) if re.fullmatch(r"\d+(x\d+)*", size) else ()
  if kind not in CHIPS or not shape:
    kinds = (f"{each}:{chip.shapes[0]}" for each, chip in CHIPS.items())
    raise UserError(f"--topology: {name!r} is unknown (known: {', '.join(kinds)}, cpu:8, ...; --help has all)")
  chip = CHIPS[kind]
  if len(shape) != chip.axes:
    raise UserError(f"--topology: {name!r}: {kind} has {chip.axes} dimensions (known: {', '.join(chip.shapes)})")
  return Topology(name, _tpus(name, chip), chip, shape)


def _tpus(name: str, chip: Chip) -> Sequence[Any]:
  from jax.experimental import topologies

  options = {"chip_config_name": chip.config} if chip.config else {}
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
  except Exception as error:  # Its kind varies with what is wrong.
    if importlib.util.find_spec("libtpu") is None:
      raise UserError("--topology: the compiler for TPUs, libtpu, is not installed; //tools/aot has it") from None
    reason = str(error).splitlines()[0][:120]
    raise UserError(f"--topology: {name!r}: {reason} (known: {', '.join(chip.shapes)})") from None


def _attached(name: str, kind: str, size: str) -> Topology:
  if not size.isdigit() or int(size) < 1:
    raise UserError(f"--topology: {name!r} must tell a number of devices, {kind}:8 say")
  if kind == "cpu":
    with contextlib.suppress(RuntimeError):  # Too late where some are in use; what there are then must do.
      jax.config.update("jax_num_cpu_devices", int(size))
  try:
    devices = jax.devices(kind)
  except RuntimeError:
    raise UserError(
      f"--topology: {name!r}: it compiles for GPUs that are attached to this machine, and there are none that JAX can "
      "use; it needs an NVIDIA driver and jax[cuda13] in place of this tool's pins"
    ) from None
  if len(devices) < int(size):
    raise UserError(f"--topology: {name!r}: there are {len(devices)} devices of that kind here")
  return Topology(name, devices[: int(size)], None, (int(size),))
