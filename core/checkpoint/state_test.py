"""Checkpoints are whole or absent, damage is found in any file, and any mesh restores what another saved."""

import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core.checkpoint.state import Checkpoints, restore
from core.errors import UserError
from core.state import TrainState

jax.config.update("jax_num_cpu_devices", 8)


def make_state(value=0.0):
  params = {"kernel": jnp.arange(4096.0).reshape(64, 64) + value, "bias": jnp.full(3, value, jnp.bfloat16)}
  return TrainState.create(params, optax.adam(1e-3).init(params)).replace(step=jnp.int32(value))


def like(state, sharding=None):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state)


def assert_equal(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture
def saved(tmp_path):
  """A folder with the checkpoints of steps 1 and 2."""
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  for step in (1, 2):
    checkpoints.save(step, make_state(step))
  assert checkpoints.close()
  return tmp_path / "checkpoints"


def test_a_state_comes_back_bit_for_bit(saved):
  checkpoints = Checkpoints(saved)
  assert checkpoints.newest_good() == 2
  restored = restore(checkpoints.path(2), like(make_state()))
  assert jax.tree.structure(restored) == jax.tree.structure(make_state())
  assert_equal(restored, make_state(2))
  checkpoints.close()


def test_what_is_saved_is_the_state_at_that_moment_though_its_buffers_are_donated_at_once(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  state = {"x": jnp.zeros(2_000_000)}
  step = jax.jit(lambda state: {"x": state["x"] + 1}, donate_argnums=0)
  for number in range(1, 6):
    state = step(state)
    checkpoints.save(number, state)
    for _ in range(3):
      state = step(state)
    checkpoints.wait()
    restored = restore(checkpoints.path(number), like({"x": jnp.zeros(2_000_000)}))
    np.testing.assert_array_equal(restored["x"], np.full(2_000_000, 4 * number - 3))
  checkpoints.close()


def _files(folder):
  return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit flipped"])
def test_damage_to_any_file_is_found_or_harmless(saved, tmp_path, damage):
  whole = tmp_path / "whole"
  shutil.copytree(saved, whole)
  found = 0
  for file in _files(whole / "2"):
    shutil.rmtree(saved)
    shutil.copytree(whole, saved)
    path = saved / "2" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
      path.unlink()
    elif damage == "truncated":
      path.write_bytes(content[: len(content) // 2])
    else:
      content[len(content) // 2] ^= 1
      path.write_bytes(content)
    warnings = []
    checkpoints = Checkpoints(saved, warn=warnings.append)
    step = checkpoints.newest_good()
    assert_equal(restore(checkpoints.path(step), like(make_state())), make_state(step))
    if step == 1:
      found += 1
      (line,) = warnings
      assert str(saved / "2") in line
      assert str(saved / "1") in line
      assert (saved / "2.damaged").is_dir()
    else:
      assert file.name in ("_CHECKPOINT_METADATA", "commit_success.txt"), f"damage to {file} went unnoticed"
    checkpoints.close()
  assert found >= 5


def test_a_write_cut_short_by_a_kill_does_not_count(saved):
  shutil.copytree(saved / "2", saved / "3.orbax-checkpoint-tmp")
  checkpoints = Checkpoints(saved)
  assert checkpoints.newest_good() == 2
  assert sorted(path.name for path in saved.iterdir()) == ["1", "2"]
  checkpoints.close()


def test_the_two_newest_and_every_kept_step_stay(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep_every=4)
  for step in range(1, 8):
    checkpoints.save(step, make_state(step))
  checkpoints.close()
  assert checkpoints.steps() == [4, 6, 7]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_another_mesh_restores_the_same_numbers(tmp_path, devices):
  mesh = Mesh(np.array(jax.devices()[:4]), ["data"])
  rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  place = lambda x: jax.device_put(x, rows if x.ndim == 2 else everywhere)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(5, jax.tree.map(place, make_state(5)))
  checkpoints.wait()
  other = Mesh(np.array(jax.devices()[:devices]), ["data"])
  columns = NamedSharding(other, PartitionSpec(None, "data"))
  wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=columns if x.ndim == 2 else NamedSharding(other, PartitionSpec())
    ),
    make_state(),
  )
  restored = restore(checkpoints.path(5), wanted)
  assert restored.params["kernel"].sharding == columns
  assert_equal(restored, make_state(5))
  checkpoints.close()


def test_a_checkpoint_of_another_model_is_refused_by_the_names_that_differ(saved):
  checkpoints = Checkpoints(saved)
  other = make_state()
  other = other.replace(params={"kernel": jnp.zeros((64, 32)), "scale": jnp.zeros(3)})
  with pytest.raises(UserError, match=r"params/bias: bfloat16\[3\] in the checkpoint, nothing in the model"):
    restore(checkpoints.path(2), like(other))
  with pytest.raises(UserError, match=r"params/kernel: float32\[64, 64\] in the checkpoint, float32\[64, 32\]"):
    restore(checkpoints.path(2), like(other))
  checkpoints.close()


@pytest.fixture
def full_disk():
  """No file of this process may grow past 4 KB: writes fail as on a full disk, for root too."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_without_room_is_found_before_anything_is_written(saved, monkeypatch):
  usage = type(shutil.disk_usage(saved))(total=1_000, used=900, free=100)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  warnings = []
  checkpoints = Checkpoints(saved, warn=warnings.append)
  checkpoints.save(3, make_state(3))
  assert not checkpoints.close()
  (line,) = warnings
  assert "the disk has 100 bytes left" in line
  assert sorted(path.name for path in saved.iterdir()) == ["1", "2"]


def test_a_write_that_fails_half_way_is_a_warning_and_the_last_good_stays(saved, full_disk):
  warnings = []
  checkpoints = Checkpoints(saved, warn=warnings.append)
  checkpoints.save(3, make_state(3))
  assert not checkpoints.close()
  (line,) = warnings
  assert "step 3 could not be written" in line
  assert str(saved / "2") in line
  assert Checkpoints(saved).newest_good() == 2
