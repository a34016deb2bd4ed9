"""Variables that are no parameters: each kind of step updates them as docs/runs.md says, on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core import sharding, trees
from core.checkpoint import pretrained
from core.checkpoint import state as checkpoints
from core.errors import UserError
from core.tasks import variables as variables_lib
from core.testing.models_with_collections import Autoencoder, Resnet, recipe
from core.training import prepare, state_init
from core.training import step as step_lib

jax.config.update("jax_num_cpu_devices", 4)

LENGTHS = dict(total_steps=10, batch_size=16, data_size=16)
WHOLE = [(".*", "replicate")]
RNG = np.random.default_rng(0)
BATCH = {
  "image": RNG.normal(size=(16, 8, 8, 1)).astype(np.float32),
  "labels": np.eye(10, dtype=np.float32)[RNG.integers(10, size=16)],
}
GSAM = dict(rho_max=0.1, rho_min=0.1, alpha=0.4)
PER_DEVICE = dict(rho=0.1, perturbation="per_device")


def placed(task, devices, **changes):
  mesh = sharding.make_mesh([("data", devices)], jax.devices()[:devices])
  options = recipe(**{"sharding_strategy": WHOLE, **changes})
  return state_init.place(task, options, BATCH, mesh=mesh, lengths=LENGTHS)


@functools.cache
def trained(kind, *, devices=1, steps=1, sam=(), accumulate=1, **changes):
  """Returns the states before and after some steps, on the host; `sam` as the items of a dict."""
  task = kind()
  placement = placed(task, devices, sam=dict(sam) or None, **changes)
  batch = jax.device_put(BATCH, placement.batch_sharding)
  settings = {**prepare.step_settings(placement, total_steps=10), "accumulate": accumulate}
  state = first = placement.fresh_state(batch)
  update = jax.jit(step_lib.make_update(task, placement.tx, **settings))
  for _ in range(steps):
    state, _ = update(state, batch)
  return jax.device_get(first), jax.device_get(state)


def assert_close(found, wanted, atol=1e-6):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol), found, wanted)


def stem(params, images):
  """Returns the outputs of the first convolution, 3x3 with zeros around the image."""
  padded = np.pad(np.float64(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel = np.float64(params["stem"]["kernel"])
  return sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))


def running(before, params, parts):
  """Returns the first normalization's running mean and variance: a tenth towards the mean over parts of a batch."""
  seen = [stem(params, images) for images in parts]
  moments = {"mean": [x.mean((0, 1, 2)) for x in seen], "var": [x.var((0, 1, 2)) for x in seen]}
  return {name: 0.9 * before[name] + 0.1 * np.mean(each, axis=0) for name, each in moments.items()}


@pytest.mark.parametrize(
  "options",
  [
    {},
    dict(sam=(("rho", 0.1),)),
    dict(sam=tuple(GSAM.items())),
    dict(sam=(("rho", 0.1), ("every", 2))),
    dict(sam=tuple(PER_DEVICE.items())),  # On one device it is the whole batch's.
  ],
  ids=["plain", "SAM", "GSAM", "LookSAM", "per device"],
)
def test_the_pass_at_the_parameters_themselves_moves_the_running_averages(options):
  before, after = trained(Resnet, **options)
  wanted = running(before.collections["batch_stats"]["stem_norm"], before.params, [BATCH["image"]])
  assert_close(after.collections["batch_stats"]["stem_norm"], wanted, atol=2e-6)
  # Of every layer, to the bit nearly: the second pass of SAM leaves no trace.
  assert_close(after.collections, trained(Resnet)[1].collections)
  assert np.abs(after.params["stem"]["kernel"] - before.params["stem"]["kernel"]).max() > 1e-4


@pytest.mark.parametrize("steps", [2, 3])
def test_a_step_of_looksam_without_a_second_pass_updates_them_too(steps):
  sam = (("rho", 0.1), ("every", 4))
  before, after = (trained(Resnet, sam=sam, steps=n)[1] for n in (steps - 1, steps))
  wanted = running(before.collections["batch_stats"]["stem_norm"], before.params, [BATCH["image"]])
  assert_close(after.collections["batch_stats"]["stem_norm"], wanted, atol=2e-6)


@pytest.mark.parametrize("sam", [(), (("rho", 0.1),)], ids=["plain", "SAM"])
def test_the_parts_of_an_accumulated_batch_start_from_the_steps_own_and_their_mean_is_kept(sam):
  before, after = trained(Resnet, accumulate=2, sam=sam)
  parts = [BATCH["image"][part::2] for part in range(2)]
  wanted = running(before.collections["batch_stats"]["stem_norm"], before.params, parts)
  assert_close(after.collections["batch_stats"]["stem_norm"], wanted, atol=2e-6)
  whole = running(before.collections["batch_stats"]["stem_norm"], before.params, [BATCH["image"]])
  assert np.abs(whole["var"] - wanted["var"]).max() > 1e-5  # Each part has a mean of its own.


def test_of_a_perturbation_per_device_the_mean_over_devices_is_kept():
  before, after = trained(Resnet, devices=4, sam=tuple(PER_DEVICE.items()))
  wanted = running(before.collections["batch_stats"]["stem_norm"], before.params, np.split(BATCH["image"], 4))
  assert_close(after.collections["batch_stats"]["stem_norm"], wanted, atol=2e-6)


@pytest.mark.parametrize("kind", [Resnet, Autoencoder])
@pytest.mark.parametrize("devices", [2, 4])
def test_several_devices_see_the_whole_batch(kind, devices):
  one, several = (trained(kind, devices=n)[1] for n in (1, devices))
  assert_close(several.collections, one.collections)
  assert_close(several.params, one.params)


def test_the_code_book_is_moved_as_a_step_of_k_means():
  before, after = trained(Autoencoder)
  kernel, book = np.float64(before.params["encoder"]["kernel"]), before.collections["codebook"]["quantizer"]
  patches = BATCH["image"].reshape(16, 2, 4, 2, 4, 1).swapaxes(2, 3).reshape(64, 16)
  vectors = patches @ kernel.reshape(16, -1) + before.params["encoder"]["bias"]
  entries = book["sums"] / book["counts"][:, None]
  nearest = np.linalg.norm(vectors[:, None] - entries, axis=-1).argmin(axis=1)
  chosen = np.eye(len(entries))[nearest]
  wanted = {"counts": chosen.sum(axis=0), "sums": chosen.T @ vectors}
  wanted = {name: 0.8 * book[name] + 0.2 * wanted[name] for name in wanted}
  assert_close(after.collections["codebook"]["quantizer"], wanted, atol=1e-5)
  assert len(set(nearest)) > 2


def test_neither_decay_nor_an_average_nor_the_optimizer_touches_them():
  both = dict(wd=0.1, ema=dict(decay=0.5), optax_name="scale_by_adam")
  placement = placed(Resnet(), 1, wd_mults=[(".*", 1.0)], **both)
  names = [name for name, _ in trees.flatten_with_names(placement.shapes.opt_state)]
  assert any("stem_norm/scale" in name for name in names)
  assert not any("batch_stats" in name or name.endswith("/var") for name in names)
  assert_close(trained_with_decay(placement).collections, trained(Resnet)[1].collections)


def trained_with_decay(placement):
  batch = jax.device_put(BATCH, placement.batch_sharding)
  update = jax.jit(step_lib.make_update(placement.task, placement.tx, seed=0))
  return jax.device_get(update(placement.fresh_state(batch), batch)[0])


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_checkpoint_brings_them_back_bit_for_bit_on_any_mesh(tmp_path, devices):
  split = [("codebook/.*|.*/kernel", "fsdp(axis='data', min_size_to_shard_mb=0)"), *WHOLE]
  first = placed(Autoencoder(), 2, sharding_strategy=split)
  state = first.fresh_state(jax.device_put(BATCH, first.batch_sharding))
  assert not state.collections["codebook"]["quantizer"]["sums"].sharding.is_fully_replicated
  saved = checkpoints.Checkpoints(tmp_path)
  saved.save(1, state)
  assert saved.close()
  like = placed(Autoencoder(), devices, sharding_strategy=split).shapes
  restored = checkpoints.restore(saved.path(1), like)
  jax.tree.map(np.testing.assert_array_equal, sharding.to_host(restored), sharding.to_host(state))
  assert restored.collections["codebook"]["quantizer"]["sums"].sharding.num_devices == devices


def test_a_rule_that_names_no_collection_is_refused_by_the_names_that_there_are():
  with pytest.raises(UserError, match=r"config\.sharding_strategy: 'batchstats/\.\*' matches no parameter"):
    placed(Resnet(), 1, sharding_strategy=[("batchstats/.*", "replicate"), *WHOLE])


def test_a_collection_that_init_does_not_make_is_refused():
  class Forgetful(Resnet):
    def init(self, rng, batch):
      return {"params": super().init(rng, batch)["params"]}

    def loss(self, variables, batch, rng):
      made = super().init(rng, batch)
      return super().loss({**made, "params": variables["params"]}, batch, rng)

  with pytest.raises(UserError, match="updates the collection 'batch_stats', which its init does not make"):
    trained(Forgetful)


def test_whole_numbers_stay_whole_numbers():
  class Counting(Resnet):
    def init(self, rng, batch):
      return {**super().init(rng, batch), "seen": {"steps": jnp.int32(0)}}

    def loss(self, variables, batch, rng):
      bare = {name: variables[name] for name in ("params", "batch_stats")}
      loss, metrics, updated = super().loss(bare, batch, rng)
      return loss, metrics, {**updated, "seen": {"steps": variables["seen"]["steps"] + 1}}

  _, after = trained(Counting, accumulate=2, steps=2)
  assert after.collections["seen"]["steps"] == 2
  assert after.collections["seen"]["steps"].dtype == np.int32


def test_weights_are_saved_with_them_and_loaded_from_there(tmp_path):
  placement = placed(Resnet(), 2)
  _, state = trained(Resnet)
  pretrained.save_variables(tmp_path / "weights.npz", state.variables)
  with np.load(tmp_path / "weights.npz") as arrays:
    assert {"params/head/kernel", "batch_stats/stem_norm/mean"} <= set(arrays)

  def load(variables):
    file = str(tmp_path / "weights.npz")
    rest = variables_lib.load_collections("vit", variables_lib.collections_of(variables), file)
    return {"params": pretrained.load_variables(file)["params"], **rest}

  task = Resnet()
  task.load = load
  loaded = placement.fresh_variables(jax.device_put(BATCH, placement.batch_sharding), task)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), state.variables)
