"""The loss against its definition; teachers that cost a forward pass and no more, and stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from core import sharding, trees
from core.checkpoint import pretrained
from core.config import ConfigDict, validate
from core.errors import UserError
from core.optim import masks, optimizer
from core.state import TrainState
from core.tasks.classification import Classification
from core.tasks.distillation import Distillation
from core.tasks.mixup import mixup
from core.testing import params as test_params
from core.training import step as step_lib

jax.config.update("jax_num_cpu_devices", 2)

TINY = dict(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=(8, 8))
BATCH = 8


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
  """Nearly all the time of these tests is XLA optimizing programs that run once."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


def make_config(**kw):
  """A ViT taught by a wider one; a change to None leaves a key out."""
  config = dict(
    num_classes=10,
    student_name="vit",
    student=TINY,
    teachers=["prof"],
    prof_name="vit",
    prof=TINY | dict(width=32),
    prof_init=None,
    mixup=dict(p=1.0),
    optax_name="scale_by_adam",
    lr=1e-2,
    wd=1e-2,
    schedule=dict(warmup_steps=2),
  )
  config = ConfigDict({**config, **kw})
  validate(config)
  return config


def make_batch(**more):
  images = np.random.default_rng(0).uniform(-1, 1, (BATCH, 16, 16, 3)).astype(np.float32)
  return {"image": images, **more}


def fresh_params(task, batch):
  """Values none of which is at rest."""
  return test_params.random_like(jax.eval_shape(lambda batch: task.init(jax.random.key(0), batch)["params"], batch))


def kl(student, teacher):
  """Mean over examples, in double precision."""
  p, q = (log_softmax(np.asarray(logits, np.float64), axis=-1) for logits in (teacher, student))
  return np.mean(np.sum(np.exp(p) * (p - q), axis=-1))


def compile_step(config, batch):
  task = Distillation(config)
  params = jax.eval_shape(lambda batch: task.init(jax.random.key(0), batch)["params"], batch)
  tx, _ = optimizer.make(config, params, sched_kw=dict(total_steps=10, batch_size=1, data_size=1))
  state = jax.eval_shape(lambda params: TrainState.create(params, tx.init(params)), params)
  return jax.jit(step_lib.make_update(task, tx, seed=0)).lower(state, batch).compile(), tx


def test_the_loss_is_the_distance_on_the_same_mixture_of_images():
  task, batch = Distillation(make_config()), make_batch()
  params, rng = fresh_params(task, batch), jax.random.key(3)
  images, _ = mixup(jax.random.split(rng)[0], 1.0, batch["image"], batch["image"])
  logits = [jax.jit(task.predict[name])(params, {"image": images})[0] for name in ("student", "prof")]
  value, logged = jax.jit(task.loss)(params, batch, rng)
  assert value > 0.01
  np.testing.assert_allclose(value, kl(*logits), rtol=1e-4)
  assert logged == {"distance/prof": value}
  np.testing.assert_array_equal(task.predict["predict"](params, batch)[0], task.predict["student"](params, batch)[0])


def test_a_model_may_have_images_of_its_own_mixed_up_by_the_same_weight():
  config = make_config(teachers=["prof", "dean"], dean_name="vit", dean=TINY, dean_init=None)
  small = make_batch()
  # The dean's images are the same pictures, twice as large and in another range of values.
  batch = make_batch(dean=np.repeat(np.repeat(small["image"], 2, axis=1), 2, axis=2) * 4 + 1)
  task, rng = Distillation(config), jax.random.key(3)
  params = fresh_params(task, batch)
  assert params["dean"]["pos_embedding"].shape[1] == 4 * params["prof"]["pos_embedding"].shape[1]
  weight = mixup(jax.random.split(rng)[0], 1.0, np.eye(2, dtype=np.float32))[0][0, 0]
  mixed = {key: weight * x + (1 - weight) * np.roll(x, 1, axis=0) for key, x in batch.items()}
  logits = {name: jax.jit(task.predict[name])(params, mixed)[0] for name in ("student", "prof", "dean")}
  value, logged = jax.jit(task.loss)(params, batch, rng)
  want = {f"distance/{name}": kl(logits["student"], logits[name]) for name in ("prof", "dean")}
  for key, each in want.items():
    np.testing.assert_allclose(logged[key], each, rtol=1e-4)
  np.testing.assert_allclose(value, np.mean(list(want.values())), rtol=1e-4)  # Of several teachers the mean.


def test_a_teacher_costs_one_forward_pass_and_no_memory_for_a_backward_pass():
  models = dict(student=TINY | dict(width=32), prof=TINY | dict(width=128, mlp_dim=512), mixup=dict(p=0.0))
  config, batch = make_config(**models), make_batch(labels=np.eye(10, dtype=np.float32)[:BATCH])
  alone = Classification(ConfigDict({**config, "model_name": "vit", "model": config.student, "teachers": ()}))
  params = jax.eval_shape(lambda: alone.init(jax.random.key(0), batch)["params"])
  plain = {key: value for key, value in config.items() if key != "teachers"}
  tx, _ = optimizer.make(plain, params, sched_kw=dict(total_steps=10, batch_size=1, data_size=1))
  state = jax.eval_shape(lambda params: TrainState.create(params, tx.init(params)), params)
  without = jax.jit(step_lib.make_update(alone, tx, seed=0)).lower(state, batch).compile()
  task = Distillation(config)
  params = jax.eval_shape(lambda: task.init(jax.random.key(0), batch)["params"])
  forward = jax.jit(lambda params, batch: task.predict["prof"](params, batch)[0]).lower(params, batch).compile()
  step, _ = compile_step(config, batch)
  flops = lambda compiled: compiled.cost_analysis()["flops"]
  memory = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
  # The norm of all parameters, which each step logs, takes two operations for one of them.
  norm = 2 * sum(leaf.size for leaf in jax.tree.leaves(params["prof"]))
  np.testing.assert_allclose(flops(step) - flops(without), flops(forward) + norm, rtol=0.005)
  assert flops(forward) > 2 * flops(without)  # So that a backward pass could not hide.
  assert memory(step) < memory(without) + 1.2 * memory(forward)


def test_a_teacher_is_the_same_to_the_last_bit_after_training_and_has_no_optimizer_state():
  config, batch = make_config(), make_batch()
  step, tx = compile_step(config, batch)
  params = fresh_params(Distillation(config), batch)
  state = first = TrainState.create(params, jax.jit(tx.init)(params))
  for _ in range(4):
    state, metrics = step(state, batch)
  assert np.isfinite(metrics["training_loss"])
  for (name, before), after in zip(trees.flatten_with_names(first.params), jax.tree.leaves(state.params)):
    same = np.asarray(before).tobytes() == np.asarray(after).tobytes()
    assert same == name.startswith("prof/"), name
  kept = [name for name, _ in trees.flatten_with_names(state.opt_state)]
  assert any("student/head/kernel" in name for name in kept)
  assert not any("prof/" in name for name in kept)


def test_a_schedule_may_say_that_a_teacher_is_frozen_or_not():
  unsaid = make_config()
  said = make_config(schedule=[("prof/.*", None), (".*", unsaid.schedule)])
  assert masks.schedule_rules(said) == masks.schedule_rules(unsaid) == [("prof/.*", None), (".*", unsaid.schedule)]


def test_a_teacher_may_lie_divided_over_the_devices_and_the_student_whole():
  config, batch = make_config(), make_batch()
  task = Distillation(config)
  params, mesh = fresh_params(task, batch), sharding.make_mesh()
  strategy = [("prof/.*", "fsdp(axis='data', min_size_to_shard_mb=0)")]
  divided = jax.device_put(params, sharding.params_shardings(params, mesh, strategy))
  assert not divided["prof"]["head"]["kernel"].sharding.is_fully_replicated
  assert divided["student"]["head"]["kernel"].sharding.is_fully_replicated
  batch_on_devices = jax.device_put(batch, sharding.batch_sharding(mesh))
  loss = jax.jit(lambda params, batch: task.loss(params, batch, jax.random.key(0))[0])
  np.testing.assert_allclose(loss(divided, batch_on_devices), loss(params, batch), rtol=1e-5)


def test_a_teacher_runs_without_dropout_and_the_student_with():
  batch = make_batch()
  for name, same in [("prof", True), ("student", False)]:
    dropped = make_config(mixup=dict(p=0.0), **{name: make_config()[name].to_dict() | dict(dropout=0.5)})
    task = Distillation(dropped)
    params, loss = fresh_params(task, batch), jax.jit(task.loss)
    one, other = (loss(params, batch, jax.random.key(seed))[0] for seed in (0, 1))
    assert (one == other) == same


def test_a_teacher_in_bfloat16_takes_half_the_memory_and_says_nearly_the_same(tmp_path):
  batch, plain = make_batch(), Distillation(make_config())
  params = fresh_params(plain, batch)
  pretrained.save_params(tmp_path / "prof.npz", params["prof"])
  task = Distillation(make_config(prof_dtype="bfloat16", prof_init=str(tmp_path / "prof.npz")))
  shapes = jax.eval_shape(lambda: task.init(jax.random.key(0), batch)["params"])
  loaded = task.load(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded["prof"])} == {np.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded["student"])} == {np.dtype("float32")}
  found, want = jax.jit(task.predict["prof"])(loaded, batch)[0], jax.jit(plain.predict["prof"])(params, batch)[0]
  assert found.dtype == jnp.float32
  assert 0 < np.max(np.abs(found - want)) < 0.05 * np.max(np.abs(want))


def test_the_student_begins_as_it_would_alone():
  config, batch = make_config(), make_batch(labels=np.eye(10, dtype=np.float32)[:BATCH])
  alone = Classification(ConfigDict(dict(num_classes=10, model_name="vit", model=config.student)))
  init = lambda task: jax.jit(lambda rng: task.init(rng, batch)["params"])(jax.random.key(5))
  jax.tree.map(np.testing.assert_array_equal, init(Distillation(config))["student"], init(alone))


def test_each_model_starts_from_a_file_of_its_own_or_all_from_that_of_a_run(tmp_path):
  batch = make_batch()
  donor = fresh_params(Distillation(make_config()), batch)
  pretrained.save_params(tmp_path / "params.npz", donor)
  pretrained.save_params(tmp_path / "prof.npz", donor["prof"])
  zeros = jax.tree.map(np.zeros_like, donor)
  load = lambda **kw: Distillation(make_config(**kw)).load(zeros)
  own = load(prof_init=str(tmp_path / "prof.npz"))
  jax.tree.map(np.testing.assert_array_equal, own, {"student": zeros["student"], "prof": donor["prof"]})
  student = load(student_init=f"{tmp_path}/params.npz:student", student_load=dict(dont_load=["head/.*"]))["student"]
  assert not np.any(student["head"]["kernel"])
  assert np.all(student["embedding"]["kernel"])
  jax.tree.map(np.testing.assert_array_equal, load(model_init=str(tmp_path / "params.npz"), prof_init="no.npz"), donor)
  assert Distillation(make_config()).load is None


def test_a_student_may_take_other_options_with_the_same_parameters():
  task, batch = Distillation(make_config()), make_batch()
  params = fresh_params(task, batch)
  other = Distillation(make_config(), pool_type="0")
  one, two = (each.predict["student"](params, batch)[0] for each in (task, other))
  assert np.max(np.abs(one - two)) > 1e-3
  np.testing.assert_array_equal(task.predict["student"](params, batch, pool_type="0")[0], two)
  np.testing.assert_array_equal(*(each.predict["prof"](params, batch)[0] for each in (task, other)))


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(teachers=["prof", "prof"]), "config.teachers: 'prof' cannot be a teacher's name; take a word of its own"),
    (dict(teachers=["prof", "lr"], lr_init=None, lr_name="vit"), "config.teachers: 'lr' cannot be a teacher's name"),
    (dict(teachers=["prof", "dean"], dean_name="vit"), r"config.dean_init is missing: the teacher's weights, a name"),
    (dict(teachers=["prof", "dean"], dean_init=None), r"config.dean_name is missing: the model's family, 'vit' say"),
    (dict(prof_name="vitt"), r"config.prof: prof_name 'vitt' is unknown"),
    (dict(prof=dict(widht=3)), r"config.prof: .*widht"),
    (dict(prof_dtype="float16"), r"config.prof_dtype: no dtype 'float16' \(did you mean 'bfloat16'\?\)"),
    (dict(student_dtype="bfloat16"), "config.student_dtype: a student's parameters are float32"),
    (dict(distance="kll"), r"config.distance: no distance 'kll' \(did you mean 'kl'"),
    (dict(distance_kw=dict(t=0)), "config.distance_kw.t: a temperature must be a number greater than 0, got 0"),
  ],
)
def test_a_config_that_makes_no_sense_is_refused(change, message):
  config = make_config(**change)
  with pytest.raises(UserError, match=message):
    Distillation(config)


def test_no_teachers_and_keys_of_models_that_are_none_are_refused():
  with pytest.raises(UserError, match=r"config.teachers must name one teacher or more, \['prof'\] say, got \[\]"):
    Distillation(ConfigDict(dict(teachers=[])))
  with pytest.raises(UserError, match=r"config.dean_init is not a key of a config"):
    make_config(dean_init="x")


@pytest.mark.parametrize(
  "change, batch, message",
  [
    ({}, {}, r"must leave 'image' \(or 'student', for the student alone\); it leaves: labels, prof"),
    ({}, dict(image=np.zeros((2, 16, 16))), r"images \[batch, height, width, channels\] under 'image', not \(2, 16"),
    ({}, dict(image=np.zeros((2, 16, 16, 3)), prf=np.zeros((2, 8, 8, 3))), r"under 'prf', .*did you mean 'prof'"),
    (dict(prof=dict(num_classes=7)), {}, "config.prof: the teacher gives 7 classes an image, and the student 10 cla"),
    (dict(schedule=[("prof/head/.*", {}), (".*", {})]), {}, "'prof/head/.*' would train the teacher prof; teachers"),
  ],
)
def test_batches_classes_and_rules_that_do_not_fit_are_refused(change, batch, message):
  if change:
    batch = make_batch()
  elif not batch:
    batch = {"prof": np.zeros((2, 16, 16, 3)), "labels": np.zeros((2, 10))}
  config = make_config(**({**change, "prof": TINY | change["prof"]} if "prof" in change else change))
  with pytest.raises(UserError, match=message):
    jax.eval_shape(lambda: Distillation(config).init(jax.random.key(0), batch))


def test_a_teachers_file_that_is_missing_or_of_other_classes_is_refused_by_its_key(tmp_path):
  batch = make_batch()
  task = Distillation(make_config(prof_init=str(tmp_path / "none.npz")))
  params = fresh_params(task, batch)
  with pytest.raises(UserError, match=r"config.prof_init: .*none.npz"):
    task.load(params)
  other = Distillation(make_config(num_classes=7))
  pretrained.save_params(tmp_path / "other.npz", fresh_params(other, batch)["prof"])
  with pytest.raises(UserError, match=r"7 classes, .* 10 classes \(num_classes\); student and teacher must have"):
    Distillation(make_config(prof_init=str(tmp_path / "other.npz"))).load(params)
