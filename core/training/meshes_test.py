"""One config on any mesh: the losses of one device, and a checkpoint that any other mesh goes on from."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from core import sharding, trees
from core.checkpoint import state as checkpoints
from core.recipe.parse import parse
from core.state import TrainState
from core.tasks.classification import Classification
from core.training import state_init
from core.training.step import make_update

jax.config.update("jax_num_cpu_devices", 8)
# Eight devices on a few busy cores: a collective may have to wait for the last of them.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_collective_call_terminate_timeout_seconds=600"

STEPS = 20
FSDP = [(".*", "fsdp(min_size_to_shard_mb=0)")]
TENSOR = [
  (".*/(query|key|value)/kernel", "fsdp(tensor=-2, min_size_to_shard_mb=0)"),
  (".*/out/kernel", "fsdp(tensor=-3, min_size_to_shard_mb=0)"),
  (".*/Dense_0/kernel", "fsdp(tensor=-1, min_size_to_shard_mb=0)"),
  (".*/Dense_1/kernel", "fsdp(tensor=-2, min_size_to_shard_mb=0)"),
  *FSDP,
]
MESHES = {
  "one": (1, [("data", 1)], []),
  "fsdp 2": (2, [("fsdp", 2)], FSDP),
  "fsdp 2 x tensor 2": (4, [("fsdp", 2), ("tensor", 2)], TENSOR),
  "fsdp 8": (8, [("fsdp", 8)], FSDP),
  "replica 2 x fsdp 4": (8, [("replica", 2), ("fsdp", 4)], FSDP),
}


@dataclasses.dataclass(frozen=True)
class Run:
  """The train state on a mesh, its shapes, the step and a batch."""

  state: TrainState
  shapes: TrainState
  lowered: jax.stages.Lowered
  batch: dict[str, jax.Array]

  @functools.cached_property
  def update(self):
    return self.lowered.compile()


@functools.cache
def make_run(name):
  devices, mesh, strategy = MESHES[name]
  config = dict(
    total_steps=100,
    num_classes=10,
    loss="softmax_xent",
    model_name="vit",
    model=dict(width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=(2, 2), pool_type="map", scan=True),
    input=dict(data=dict(name="digits", split="train"), batch_size=16),
    mesh=mesh,
    sharding_strategy=strategy,
    mixup=dict(p=0.2),
    optax_name="scale_by_adafactor",
    optax=dict(min_dim_size_to_factor=16, dtype_momentum="float32"),
    grad_clip_norm=1.0,
    lr=5e-4,
    wd=1e-4,
    schedule=dict(decay_type="cosine", warmup_steps=5),
  )
  recipe, rng = parse(Classification.Recipe, config), np.random.default_rng(0)
  task = Classification(recipe)
  batch = {
    "image": rng.uniform(-1, 1, (16, 8, 8, 3)).astype(np.float32),
    "labels": np.eye(10, dtype=np.float32)[rng.integers(10, size=16)],
  }
  lengths = dict(total_steps=100, batch_size=16, data_size=160)
  placement = state_init.place(task, recipe, batch, devices=jax.devices()[:devices], lengths=lengths)
  batch = jax.device_put(batch, placement.batch_sharding)
  with placement.activations():
    state = placement.fresh_state(batch)
    out_shardings = (jax.tree.map(lambda x: x.sharding, placement.shapes), sharding.replicated(placement.mesh))
    lowered = jax.jit(make_update(task, placement.tx, seed=0), out_shardings=out_shardings).lower(state, batch)
  return Run(state, placement.shapes, lowered, batch)


@functools.cache
def losses_of(name):
  run = make_run(name)
  state, losses = run.state, []
  for _ in range(STEPS):
    state, metrics = run.update(state, run.batch)
    losses.append(float(metrics["training_loss"]))
  return losses


@pytest.mark.parametrize("name", [name for name in MESHES if name != "one"])
def test_every_mesh_gives_the_losses_of_one_device(name):
  np.testing.assert_allclose(losses_of(name), losses_of("one"), rtol=1e-5)
  # Split they are, parameters and what follows them.
  split = {n for n, x in trees.flatten_with_names(make_run(name).state) if not x.sharding.is_fully_replicated}
  kernel = "Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"
  assert {f"params/{kernel}", *(n for n in split if n.endswith(f"v_col/{kernel}"))} <= split
  assert any("opt_state" in n and n.endswith(kernel) for n in split)


def test_each_device_works_on_its_own_part_of_the_batch_and_gathers_a_layer_at_a_time():
  program = make_run("fsdp 8").update.as_text()
  assert "f32[16,16,32]" not in program  # Tokens of the whole batch,
  assert "f32[2,16,32]" in program  # and of an eighth of it.
  gathered = [line for line in program.splitlines() if " all-gather(" in line]
  assert any("f32[1,32,64]" in line or "f32[32,64]" in line for line in gathered)
  assert not any("f32[2,32,64]" in line for line in gathered)  # Not the stack of both blocks.


def test_a_checkpoint_of_eight_devices_goes_on_on_two_and_on_one_and_back(tmp_path):
  names = {8: "replica 2 x fsdp 4", 2: "fsdp 2", 1: "one"}
  run = make_run(names[8])
  state, _ = run.update(run.state, run.batch)
  first = sharding.to_host(state)
  for step, devices in enumerate((2, 1, 8), 1):
    saved = checkpoints.Checkpoints(tmp_path / str(step), keep_every=None, warn=print)
    saved.save(step, state)
    saved.wait()
    saved.close()
    state = checkpoints.restore(saved.path(step), make_run(names[devices]).shapes)
    kernel = state.params["Transformer"]["encoderblock"]["MlpBlock_0"]["Dense_0"]["kernel"]
    assert len(kernel.sharding.device_set) == devices
    jax.tree.map(np.testing.assert_array_equal, sharding.to_host(state), first)
  assert kernel.sharding.spec == PartitionSpec(None, None, "fsdp")
  assert jnp.isfinite(run.update(state, run.batch)[1]["training_loss"])
