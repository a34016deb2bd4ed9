"""Every topology that `--help` offers has the devices that the table of chips says, and a step compiles for it."""

import math

import pytest

from tools.aot import aot, chips

DIGITS = "projects/vit/configs/digits.py:runlocal"
TINY = [("model.depth", "1"), ("model.width", "16"), ("model.mlp_dim", "32"), ("model.num_heads", "2")]
NAMES = [f"{kind}:{shape}" for kind, chip in chips.CHIPS.items() for shape in chip.shapes]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_compiles_for_every_topology_that_is_offered(name):
  aot.settle_jax(name)
  topology = chips.topology(name)
  devices = math.prod(topology.shape) * topology.chip.devices
  assert len(topology.devices) == devices
  one_core = name.startswith(("v5e", "v6e")) or topology.chip.devices == 2
  assert {device.num_cores for device in topology.devices} == {1 if one_core else 2}
  found = aot.compile_and_report(DIGITS, name, overrides=[*TINY, ("input.batch_size", str(devices))])
  assert found["memory"]["peak"] < topology.hbm
