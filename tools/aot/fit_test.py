"""What is said of a step that does not fit."""

from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from tools.aot import fit
from tools.aot.chips import CHIPS, Topology

GIB = 2**30
MESH = AbstractMesh((4,), ("data",))
TOPOLOGY = Topology("v5e:2x2", [None] * 4, CHIPS["v5e"], (2, 2))
STEP = SimpleNamespace(
  mesh=MESH,
  state=SimpleNamespace(opt_state=()),
  batch={"image": jax.ShapeDtypeStruct((64,), "float32", sharding=NamedSharding(MESH, PartitionSpec("data")))},
)
PLAIN = dict(model_name="vit", model={}, input=dict(batch_size=64))


def refusal(config, *, params, temporaries):
  arguments = {"params": params * GIB, "batch": GIB}
  return fit.refusal(STEP, ConfigDict(config), TOPOLOGY, arguments, temporaries * GIB, 16 * GIB)


def test_the_line_has_the_numbers():
  line = refusal(PLAIN, params=1, temporaries=20)
  assert "2.00 GiB of arguments and 20.00 GiB of temporaries a device are needed, v5e:2x2 has 16.00 GiB" in line
  assert "\n" not in line


@pytest.mark.parametrize(
  "config, params, temporaries, remedies",
  [
    # Activations fill it: compute them again, or the batch in two parts.
    (PLAIN, 1, 20, ["--config.model.remat_policy=nothing_saveable", "--config.grad_accum_steps=2"]),
    # That is done already.
    ({**PLAIN, "model": dict(remat_policy="nothing_saveable")}, 1, 40,
     ["--config.grad_accum_steps=4", "--topology=v5e:4x4"]),
    ({**PLAIN, "grad_accum_steps": 2, "model": dict(scan=True)}, 1, 20,
     ["--config.grad_accum_steps=4", "--topology=v5e:2x4"]),
    # Parameters fill it: split them.
    (PLAIN, 15, 4, ["--config.mesh=auto, which leaves about 3.75 GiB", "--config.model.remat_policy"]),
    # Either of two towers.
    (dict(model_name="two_towers", input=dict(batch_size=64),
          model=dict(image_model="vit", text_model="text_transformer", image=dict(scan=True))), 1, 20,
     ["--config.model.text.remat_policy=nothing_saveable", "--config.grad_accum_steps=2"]),
  ],
)  # fmt: skip
def test_the_two_best_remedies_are_named(config, params, temporaries, remedies):
  _, *found = refusal(config, params=params, temporaries=temporaries).split("; ")
  assert len(found) == 2
  for line, remedy in zip(found, remedies):
    assert remedy in line
