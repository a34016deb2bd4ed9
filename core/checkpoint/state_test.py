"""Checkpoints are whole or absent, damage is found in any file, and any mesh restores what another saved."""

import re
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core.checkpoint.state import LEFT_OUT, Checkpoints, find, restore
from core.errors import UserError
from core.state import TrainState
from core.testing import bucket

jax.config.update("jax_num_cpu_devices", 8)


def make_state(value=0.0):
  params = {"kernel": jnp.arange(4096.0).reshape(64, 64) + value, "bias": jnp.full(3, value, jnp.bfloat16)}
  return TrainState.create({"params": params}, optax.adam(1e-3).init(params)).replace(step=jnp.int32(value))


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


@pytest.mark.parametrize("name", ["3.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-17", "1.being-removed"])
def test_a_write_or_a_removal_cut_short_by_a_kill_does_not_count(saved, name):
  shutil.copytree(saved / "2", saved / name)
  checkpoints = Checkpoints(saved)
  assert checkpoints.newest_good() == 2
  assert sorted(path.name for path in saved.iterdir()) == ["1", "2"]
  checkpoints.close()


# A superscript and an Arabic two; a step written otherwise; none of a size that a step has.
@pytest.mark.parametrize("name", ["best", "500-backup", "2.old", "2.damaged", "\u00b2", "\u0662", "02", "9" * 40, "-1"])
def test_what_a_run_did_not_write_is_never_removed(saved, name):
  shutil.copytree(saved / "2", saved / name)
  (saved / "9").write_text("a note")
  before = _files(saved)
  warnings = []
  checkpoints = Checkpoints(saved, warn=warnings.append)
  assert checkpoints.newest_good() == 2
  assert _files(saved) == before
  for step in (3, 4, 5):
    checkpoints.save(step, make_state(step))
  assert checkpoints.close()
  assert {path.name for path in saved.iterdir()} == {"4", "5", name, "9"}
  assert not warnings


def test_a_copy_of_another_step_is_not_taken_for_that_step_and_stays(saved):
  shutil.copytree(saved / "2", saved / "5")
  shutil.copytree(saved / "2", saved / "0")
  warnings = []
  checkpoints = Checkpoints(saved, warn=warnings.append)
  assert checkpoints.steps() == [1, 2]
  with pytest.raises(UserError, match=r"^config.resume: the checkpoint .*/5 is damaged \(its seal is of step 2\)"):
    find(saved / "5", "config.resume")
  assert find(saved.parent, "config.resume") == saved / "2"
  assert checkpoints.newest_good() == 2
  (line,) = warnings
  assert line.startswith(
    f"warning: checkpoint {saved / '5'} is damaged (its seal is of step 2), set aside as 5.damaged;"
  )
  for step in (3, 4, 5):
    checkpoints.save(step, make_state(step))
  assert checkpoints.close()
  assert {path.name for path in saved.iterdir()} == {"0", "4", "5", "5.damaged"}
  assert _files(saved / "5.damaged")


def test_what_is_set_aside_replaces_nothing_that_was(saved):
  (saved / "2.damaged").mkdir()
  (saved / "2.damaged" / "note").touch()
  (saved / "2" / "integrity.json").unlink()
  assert Checkpoints(saved, warn=lambda line: None).newest_good() == 1
  assert sorted(path.name for path in saved.iterdir()) == ["1", "2.damaged", "2.damaged-2"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
  (tmp_path / "checkpoints").touch()
  with pytest.raises(UserError, match=r"checkpoints is a file, where checkpoints are to lie; move it away$"):
    Checkpoints(tmp_path / "checkpoints").newest_good()


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

  def place(x):
    return jax.device_put(x, rows if x.ndim == 2 else everywhere)

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
  other = other.replace(params={**make_state().params, "kernel": jnp.zeros((64, 32))})
  with pytest.raises(UserError, match=r"params/kernel: float32\[64, 64\] in the checkpoint, float32\[64, 32\]"):
    restore(checkpoints.path(2), like(other))
  checkpoints.close()


@struct.dataclass
class OldState:
  """The train state of before it had collections."""

  step: jax.Array
  params: dict
  opt_state: tuple


def test_a_checkpoint_of_before_there_were_collections_is_restored(tmp_path):
  state = make_state(3)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(3, OldState(state.step, state.params, state.opt_state))
  assert checkpoints.close()
  restored = restore(checkpoints.path(3), like(make_state()))
  assert jax.tree.structure(restored) == jax.tree.structure(make_state())
  assert restored.collections == {}
  assert_equal(restored, state)


def test_what_is_left_out_is_not_read(saved):
  wanted = like(make_state())
  wanted = wanted.replace(opt_state=jax.tree.map(lambda _: LEFT_OUT, wanted.opt_state))
  restored = restore(saved / "2", wanted)
  assert_equal(restored.params, make_state(2).params)
  assert all(leaf is LEFT_OUT for leaf in jax.tree.leaves(restored.opt_state))


def test_collections_are_restored_on_another_mesh_and_their_lack_is_named(tmp_path):
  collections = {
    "batch_stats": {"bn": {"mean": jnp.arange(8.0), "var": jnp.ones(8)}},
    "codes": {"sum": jnp.ones((8, 2))},
  }
  state = make_state(4).replace(collections=collections)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(4, state)
  assert checkpoints.close()
  mesh = Mesh(np.array(jax.devices()), ["data"])
  rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows if x.shape[:1] == (8,) else everywhere), state
  )
  restored = restore(checkpoints.path(4), wanted)
  assert restored.collections["batch_stats"]["bn"]["mean"].sharding == rows
  assert restored.variables == {"params": restored.params, **restored.collections}
  assert_equal(restored, state)
  with pytest.raises(
    UserError, match=r"collections/batch_stats/bn/mean: float32\[8\] in the checkpoint, nothing in the"
  ):
    restore(checkpoints.path(4), like(make_state()))


def test_a_folder_that_is_no_checkpoint_is_refused(saved):
  (saved / "2" / "integrity.json").write_text("[]")
  with pytest.raises(UserError, match=r"2: no checkpoint of ours \(integrity.json is missing or unreadable\)$"):
    restore(saved / "2", like(make_state()))
  with pytest.raises(UserError, match=r"^config.resume: no checkpoint at /no/such; name WORKDIR/checkpoints/STEP"):
    find("/no/such", "config.resume")
  with pytest.raises(UserError, match=r"^config.resume: no checkpoint at .*/7; there are 1, 2$"):
    find(saved / "7", "config.resume")
  (saved / "file").touch()
  with pytest.raises(UserError, match=r"^config.resume: no checkpoint at .*/file; name WORKDIR/checkpoints/STEP"):
    find(saved / "file", "config.resume")


def test_a_workdir_with_the_signs_of_patterns_in_its_name_has_its_checkpoints(tmp_path):
  checkpoints = Checkpoints(tmp_path / "run[1]*" / "checkpoints")
  checkpoints.save(1, make_state(1))
  assert checkpoints.close()
  assert Checkpoints(tmp_path / "run[1]*" / "checkpoints").newest_good() == 1


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
  assert sorted(path.name for path in saved.iterdir()) == ["1", "2"]  # Nothing is left to fill the disk.
  assert Checkpoints(saved).newest_good() == 2


def fails(path):
  raise UserError(f"{path}: cannot be written (No space left on device)")


def test_when_the_last_save_fails_the_parameters_are_still_written_and_what_is_where_is_said(saved, full_disk):
  checkpoints = Checkpoints(saved, warn=lambda line: None)
  checkpoints.save(3, make_state(3))
  params, average = saved.parent / "params.npz", saved.parent / "params_ema.npz"
  with pytest.raises(OSError) as e:
    checkpoints.finish({params: params.touch, average: lambda: fails(average)})
  assert params.exists()
  line = str(e.value)
  assert re.match(r"the checkpoint of step 3 could not be written \(.+\); ", line)
  assert f"{average}: cannot be written (No space left on device); " in line
  assert line.endswith(f"the trained parameters are in {params}; the last good checkpoint is {saved / '2'}")
  assert "\n" not in line


def test_when_all_is_written_nothing_is_said(saved):
  checkpoints = Checkpoints(saved)
  checkpoints.save(3, make_state(3))
  params = saved.parent / "params.npz"
  checkpoints.finish({params: params.touch})
  assert params.exists()
  assert checkpoints.steps() == [2, 3]


def test_in_a_bucket_they_are_whole_or_absent_damage_is_found_and_old_ones_go():
  with bucket.serving() as served:
    checkpoints = Checkpoints("gs://models/run/checkpoints", keep_every=2)
    assert checkpoints.newest_good() is None
    for step in (1, 2, 3, 4):
      checkpoints.save(step, make_state(step))
    assert checkpoints.close(), checkpoints.failure
    assert checkpoints.steps() == [2, 3, 4]
    assert_equal(restore(find("gs://models/run", "config.resume"), like(make_state())), make_state(4))
    assert {name.split("/")[3] for name in served.objects} == {"2", "3", "4"}
    # The newest is damaged, and of the one before only a part was written when the run was killed.
    (data, *_) = (name for name in served.objects if "/4/" in name and "/d/" in name)
    served.objects[data] = bytes([served.objects[data][0] ^ 1]) + served.objects[data][1:]
    del served.objects["models/run/checkpoints/3/integrity.json"]
    warnings = []
    again = Checkpoints("gs://models/run/checkpoints", warn=warnings.append)
    assert again.newest_good() == 2
    (line,) = warnings
    assert line.startswith("warning: checkpoint gs://models/run/checkpoints/4 is damaged (")
    assert {name.split("/")[3] for name in served.objects} == {"2", "4.damaged"}
    served.refuses = 403
    again.save(5, make_state(5))
    assert not again.close()
    assert again.failure.startswith("the checkpoint of step 5 could not be written (")
