"""The loss against its definition; teachers that cost a forward pass and no more, and stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from core import sharding, trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.optim import masks, optimizer
from core.recipe.parse import parse
from core.recipe.types import Refused
from core.state import TrainState
from core.tasks.classification import Classification
from core.tasks.distillation import Distillation
from core.tasks.mixup import mixup
from core.testing import compilation
from core.testing import params as test_params
from core.training import step as step_lib

jax.config.update("jax_num_cpu_devices", 2)

TINY = dict(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=(8, 8))
WIDER = TINY | dict(width=32)
SCHEDULE = dict(warmup_steps=2)
BATCH = 8

quick_compilation = compilation.quick()


def make_recipe(**kw):
  """A ViT taught by a wider one."""
  config = dict(
    total_steps=2,
    input=dict(data=dict(name="digits", split="train"), batch_size=BATCH),
    num_classes=10,
    student_name="vit",
    student=TINY,
    teachers=["prof"],
    prof_name="vit",
    prof=WIDER,
    prof_init=None,
    mixup=dict(p=1.0),
    optax_name="scale_by_adam",
    lr=1e-2,
    wd=1e-2,
    schedule=SCHEDULE,
  )
  return parse(Distillation.Recipe, config | kw)


def make_task(**kw):
  return Distillation(make_recipe(**kw))


def alone(**kw):
  """The recipe of a student that learns from labels."""
  config = dict(
    total_steps=2,
    input=dict(data=dict(name="digits", split="train"), batch_size=BATCH),
    num_classes=10,
    loss="softmax_xent",
    model_name="vit",
    optax_name="scale_by_adam",
    lr=1e-2,
    wd=1e-2,
    schedule=SCHEDULE,
  )
  return parse(Classification.Recipe, config | kw)


def make_batch(**more):
  images = np.random.default_rng(0).uniform(-1, 1, (BATCH, 16, 16, 3)).astype(np.float32)
  return {"image": images, **more}


def shapes_of(task, batch):
  return jax.eval_shape(lambda batch: task.init(jax.random.key(0), batch), batch)


def fresh(task, batch):
  """Values none of which is at rest."""
  return {"params": test_params.random_like(shapes_of(task, batch)["params"])}


def kl(student, teacher):
  """Mean over examples, in double precision."""
  p, q = (log_softmax(np.asarray(logits, np.float64), axis=-1) for logits in (teacher, student))
  return np.mean(np.sum(np.exp(p) * (p - q), axis=-1))


def compile_step(task, recipe, batch):
  """The compiled train step, and the optimizer."""
  variables = shapes_of(task, batch)
  lengths = dict(total_steps=10, batch_size=1, data_size=1)
  tx, _ = optimizer.make(recipe, variables["params"], sched_kw=lengths, frozen=task.frozen)
  state = jax.eval_shape(lambda variables: TrainState.create(variables, tx.init(variables["params"])), variables)
  return jax.jit(step_lib.make_update(task, tx, seed=0)).lower(state, batch).compile(), tx


def test_the_loss_is_the_distance_on_the_same_mixture_of_images():
  task, batch = make_task(), make_batch()
  variables, rng = fresh(task, batch), jax.random.key(3)
  images, _ = mixup(jax.random.split(rng)[0], 1.0, batch["image"], batch["image"])
  logits = [jax.jit(task.predict[name])(variables, {"image": images})[0] for name in ("student", "prof")]
  value, logged = jax.jit(task.loss)(variables, batch, rng)
  assert value > 0.01
  np.testing.assert_allclose(value, kl(*logits), rtol=1e-4)
  assert logged == {"distance/prof": value}
  one, same = (task.predict[name](variables, batch)[0] for name in ("predict", "student"))
  np.testing.assert_array_equal(one, same)


def test_a_model_may_have_images_of_its_own_mixed_up_by_the_same_weight():
  small = make_batch()
  # The dean's images are the same pictures, twice as large and in another range of values.
  batch = make_batch(dean=np.repeat(np.repeat(small["image"], 2, axis=1), 2, axis=2) * 4 + 1)
  task = make_task(teachers=["prof", "dean"], dean_name="vit", dean=TINY, dean_init=None)
  variables, rng = fresh(task, batch), jax.random.key(3)
  params = variables["params"]
  assert params["dean"]["pos_embedding"].shape[1] == 4 * params["prof"]["pos_embedding"].shape[1]
  weight = mixup(jax.random.split(rng)[0], 1.0, np.eye(2, dtype=np.float32))[0][0, 0]
  mixed = {key: weight * x + (1 - weight) * np.roll(x, 1, axis=0) for key, x in batch.items()}
  logits = {name: jax.jit(task.predict[name])(variables, mixed)[0] for name in ("student", "prof", "dean")}
  value, logged = jax.jit(task.loss)(variables, batch, rng)
  want = {f"distance/{name}": kl(logits["student"], logits[name]) for name in ("prof", "dean")}
  for key, each in want.items():
    np.testing.assert_allclose(logged[key], each, rtol=1e-4)
  np.testing.assert_allclose(value, np.mean(list(want.values())), rtol=1e-4)  # Of several teachers the mean.


def test_a_teacher_costs_one_forward_pass_and_no_memory_for_a_backward_pass():
  models = dict(student=WIDER, prof=TINY | dict(width=128, mlp_dim=512), mixup=dict(p=0.0))
  recipe, batch = make_recipe(**models), make_batch(labels=np.eye(10, dtype=np.float32)[:BATCH])
  plain = alone(model=WIDER)
  without, _ = compile_step(Classification(plain), plain, batch)
  task = Distillation(recipe)
  variables = shapes_of(task, batch)
  forward = (
    jax.jit(lambda variables, batch: task.predict["prof"](variables, batch)[0]).lower(variables, batch).compile()
  )
  step, _ = compile_step(task, recipe, batch)
  flops = lambda compiled: compiled.cost_analysis()["flops"]
  memory = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
  # The norm of all parameters, which each step logs, takes two operations for one of them.
  norm = 2 * sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["prof"]))
  np.testing.assert_allclose(flops(step) - flops(without), flops(forward) + norm, rtol=0.005)
  assert flops(forward) > 2 * flops(without)  # So that a backward pass could not hide.
  assert memory(step) < memory(without) + 1.2 * memory(forward)


def test_a_teacher_is_the_same_to_the_last_bit_after_training_and_has_no_optimizer_state():
  recipe, batch = make_recipe(), make_batch()
  task = Distillation(recipe)
  step, tx = compile_step(task, recipe, batch)
  variables = fresh(task, batch)
  state = first = TrainState.create(variables, jax.jit(tx.init)(variables["params"]))
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
  params, found = fresh(make_task(), make_batch())["params"], []
  for schedule in (SCHEDULE, [("prof/.*", None), (".*", SCHEDULE)]):
    recipe = make_recipe(schedule=schedule)
    found.append(masks.trainable_by(recipe, params, frozen=Distillation(recipe).frozen))
  assert found[0] == found[1]
  trained = {name.partition("/")[0] for name, is_trained in trees.flatten_with_names(found[0]) if is_trained}
  assert trained == {"student"}


def test_a_teacher_may_lie_divided_over_the_devices_and_the_student_whole():
  recipe, batch = (
    make_recipe(sharding_strategy=[("prof/.*", "fsdp(axis='data', min_size_to_shard_mb=0)")]),
    make_batch(),
  )
  task = Distillation(recipe)
  params, mesh = fresh(task, batch)["params"], sharding.make_mesh()
  divided = jax.device_put(params, sharding.params_shardings(params, mesh, recipe.sharding_strategy))
  assert not divided["prof"]["head"]["kernel"].sharding.is_fully_replicated
  assert divided["student"]["head"]["kernel"].sharding.is_fully_replicated
  batch_on_devices = jax.device_put(batch, sharding.batch_sharding(mesh))
  loss = jax.jit(lambda params, batch: task.loss({"params": params}, batch, jax.random.key(0))[0])
  np.testing.assert_allclose(loss(divided, batch_on_devices), loss(params, batch), rtol=1e-5)


def test_a_teacher_runs_without_dropout_and_the_student_with():
  batch = make_batch()
  for name, options, same in [("prof", WIDER, True), ("student", TINY, False)]:
    task = make_task(mixup=dict(p=0.0), **{name: options | dict(dropout=0.5)})
    variables, loss = fresh(task, batch), jax.jit(task.loss)
    one, other = (loss(variables, batch, jax.random.key(seed))[0] for seed in (0, 1))
    assert (one == other) == same


def test_a_teacher_in_bfloat16_takes_half_the_memory_and_says_nearly_the_same(tmp_path):
  batch, plain = make_batch(), make_task()
  variables = fresh(plain, batch)
  pretrained.save_params(tmp_path / "prof.npz", variables["params"]["prof"])
  task = make_task(prof_dtype="bfloat16", prof_init=str(tmp_path / "prof.npz"))
  loaded = task.load(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes_of(task, batch)))
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded["params"]["prof"])} == {np.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded["params"]["student"])} == {np.dtype("float32")}
  found, want = jax.jit(task.predict["prof"])(loaded, batch)[0], jax.jit(plain.predict["prof"])(variables, batch)[0]
  assert found.dtype == jnp.float32
  assert 0 < np.max(np.abs(found - want)) < 0.05 * np.max(np.abs(want))


def test_the_student_begins_as_it_would_alone():
  batch = make_batch(labels=np.eye(10, dtype=np.float32)[:BATCH])
  init = lambda task: jax.jit(lambda rng: task.init(rng, batch)["params"])(jax.random.key(5))
  student = init(make_task())["student"]
  jax.tree.map(np.testing.assert_array_equal, student, init(Classification(alone(model=TINY))))


def test_each_model_starts_from_a_file_of_its_own_or_all_from_that_of_a_run(tmp_path):
  donor = fresh(make_task(), make_batch())["params"]
  pretrained.save_params(tmp_path / "params.npz", donor)
  pretrained.save_params(tmp_path / "prof.npz", donor["prof"])
  zeros = jax.tree.map(np.zeros_like, donor)
  load = lambda **kw: make_task(**kw).load({"params": zeros})["params"]
  own = load(prof_init=str(tmp_path / "prof.npz"))
  jax.tree.map(np.testing.assert_array_equal, own, {"student": zeros["student"], "prof": donor["prof"]})
  student = load(student_init=f"{tmp_path}/params.npz:student", student_load=dict(dont_load=["head/.*"]))["student"]
  assert not np.any(student["head"]["kernel"])
  assert np.all(student["embedding"]["kernel"])
  jax.tree.map(np.testing.assert_array_equal, load(model_init=str(tmp_path / "params.npz"), prof_init="no.npz"), donor)
  assert make_task().load is None


def test_a_prediction_may_take_other_options_with_the_same_parameters():
  task, batch = make_task(), make_batch()
  variables = fresh(task, batch)
  other = Distillation(make_recipe().with_options("student", pool_type="0"))
  one, two = (each.predict["student"](variables, batch)[0] for each in (task, other))
  assert np.max(np.abs(one - two)) > 1e-3
  np.testing.assert_array_equal(task.predict["student"](variables, batch, pool_type="0")[0], two)
  np.testing.assert_array_equal(*(each.predict["prof"](variables, batch)[0] for each in (task, other)))


@pytest.mark.parametrize(
  "options, key, line",
  [
    (dict(pool_typ="0"), "pred_kw.pool_typ", "is no key of the model vit .did you mean 'pool_type'"),
    (dict(pool_type="1"), "pred_kw.pool_type", "must be one of 'gap', 'map', 'tok', '0', 'none', got '1'"),
    (dict(num_heads=3), "pred_kw.width", "must be a multiple of num_heads, 3, got 16"),
  ],
)
def test_options_of_a_prediction_that_do_not_fit_are_refused_by_their_key(options, key, line):
  with pytest.raises(Refused, match=line) as error:
    make_task().predict["student"]({}, make_batch(), **options)
  assert error.value.key == key


@pytest.mark.parametrize(
  "change, batch, message",
  [
    ({}, {}, r"must leave 'image' \(or 'student', for the student alone\); it leaves: labels, prof"),
    ({}, dict(image=np.zeros((2, 16, 16))), r"images \[batch, height, width, channels\] under 'image', not \(2, 16"),
    ({}, dict(image=np.zeros((2, 16, 16, 3)), prf=np.zeros((2, 8, 8, 3))), r"under 'prf', .*did you mean 'prof'"),
    (dict(prof=WIDER | dict(pool_type="none")), {}, r"config.prof: the teacher gives outputs of shape \(4, 10\)"),
    (dict(schedule=[("prof/head/.*", {}), (".*", {})]), {}, "'prof/head/.*' would train the teacher prof; teachers"),
  ],
)
def test_batches_classes_and_rules_that_do_not_fit_are_refused(change, batch, message):
  if change:
    batch = make_batch()
  elif not batch:
    batch = {"prof": np.zeros((2, 16, 16, 3)), "labels": np.zeros((2, 10))}
  with pytest.raises(UserError, match=message):
    shapes_of(make_task(**change), batch)


def test_a_prediction_refuses_batches_without_images():
  with pytest.raises(Refused, match=r"the preprocessing must leave 'image' \(or 'prof', for the teacher alone\)"):
    make_task().predict["prof"]({}, {"label": np.zeros(2)})


def test_a_teachers_file_that_is_missing_or_of_other_classes_is_refused_by_its_key(tmp_path):
  batch = make_batch()
  task = make_task(prof_init=str(tmp_path / "none.npz"))
  variables = fresh(task, batch)
  with pytest.raises(UserError, match=r"config.prof_init: .*none.npz"):
    task.load(variables)
  with pytest.raises(UserError, match=r"^config.model_init: .*none.npz"):  # Of all models, in the place of their own.
    make_task(model_init=str(tmp_path / "none.npz")).load(variables)
  other = fresh(make_task(num_classes=7), batch)["params"]["prof"]
  pretrained.save_params(tmp_path / "other.npz", other)
  with pytest.raises(UserError, match=r"7 classes, .* 10 classes \(num_classes\); student and teacher must have"):
    make_task(prof_init=str(tmp_path / "other.npz")).load(variables)
