"""What is said of a step that does not fit."""

from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from core.recipe import tasks
from core.recipe.parse import parse
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
TRAINING = dict(
  optax_name="scale_by_adam",
  lr=1e-3,
  total_steps=9,
  input=dict(batch_size=64, data=dict(name="imagenet2012", split="train")),
)
PLAIN = dict(TRAINING, model_name="vit", model={}, num_classes=9, loss="softmax_xent")
TOWERS = dict(image=dict(scan=True), text=dict(vocab_size=9))


def refusal(config, *, params, temporaries):
  arguments = {"params": params * GIB, "batch": GIB}
  kind = tasks.Classification if "num_classes" in config else tasks.Contrastive
  return fit.refusal(STEP, parse(kind, config), TOPOLOGY, arguments, temporaries * GIB, 16 * GIB)


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
    (dict(TRAINING, model_name="two_towers", model=TOWERS, loss="softmax"), 1, 20,
     ["--config.model.text.remat_policy=nothing_saveable", "--config.grad_accum_steps=2"]),
  ],
)  # fmt: skip
def test_the_two_best_remedies_are_named(config, params, temporaries, remedies):
  _, *found = refusal(config, params=params, temporaries=temporaries).split("; ")
  assert len(found) == 2
  for line, remedy in zip(found, remedies):
    assert remedy in line
