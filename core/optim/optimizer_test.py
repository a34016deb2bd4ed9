import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from core import trees
from core.errors import UserError
from core.optim import optimizer
from core.recipe.optimizer import Optimizer
from core.recipe.parse import parse

TOTAL = 20
SIZE = dict(total_steps=TOTAL, batch_size=8, data_size=40)
SHAPES = {
  "embedding": {"kernel": (4, 6), "bias": (6,)},
  "encoderblock": {"Dense_0": {"kernel": (2, 6, 8), "bias": (2, 8)}},  # Stacked, as scanned blocks are.
  "head": {"kernel": (8, 3), "bias": (3,)},
}


def tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)

  def fill(shape):
    return (scale * rng.standard_normal(shape)).astype(np.float32)

  return jax.tree.map(fill, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def make(params=None, **config):
  recipe = parse(Optimizer, {"optax_name": "scale_by_adam", "lr": 0.1, **config})
  return optimizer.make(recipe, tree(0) if params is None else params, sched_kw=SIZE)


def stepper(tx):
  """The compiled step (params, state, gradients) -> (params, state)."""

  def step(params, state, gradients):
    updates, state = tx.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  return jax.jit(step)


def trained(tx, steps=6, part=lambda tree: tree):
  """Parameters after `steps` updates by random gradients (the same for every optimizer), in one compiled program."""
  gradients = jax.tree.map(lambda *leaves: np.stack(leaves), *(part(tree(100 + i)) for i in range(steps)))
  step = stepper(tx)

  @jax.jit
  def run(params, gradients):

    def body(carry, gradients):
      return (step(*carry, gradients), None)

    return jax.lax.scan(body, (params, tx.init(params)), gradients)[0][0]

  return run(part(tree(0)), gradients)


def first_update(tx):
  update = jax.jit(lambda gradients, params: tx.update(gradients, tx.init(params), params)[0])
  return dict(trees.flatten_with_names(update(tree(100), tree(0))))


def assert_close(got, want, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerance}), got, want)


def assert_same_bits(got, want):

  def same(a, b):
    return np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))

  jax.tree.map(same, *(jax.tree.map(np.atleast_1d, t) for t in (got, want)))


@pytest.mark.parametrize(
  "config, witness",
  [
    (dict(), optax.adam(0.1)),
    (dict(optax=dict(b1=0.8, b2=0.95, eps=1e-6)), optax.adam(0.1, b1=0.8, b2=0.95, eps=1e-6)),
    (dict(wd=0.1 * 0.3, wd_mults=[(".*", 1.0)]), optax.adamw(0.1, weight_decay=0.3)),
    (
      dict(wd=0.1 * 0.3),
      optax.adamw(
        0.1, weight_decay=0.3, mask=lambda p: trees.map_with_names(lambda name, _: name.endswith("kernel"), p)
      ),
    ),
    (
      dict(wd=0.1 * 0.3, wd_mults=[(".*", 1.0)], schedule=dict(decay_type="cosine", warmup_epochs=1)),
      optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, TOTAL), weight_decay=0.3),
    ),
    (dict(optax_name="identity"), optax.sgd(0.1)),
    (dict(optax_name="trace", optax=dict(decay=0.9)), optax.sgd(0.1, momentum=0.9)),
    (dict(optax_name="trace", optax=dict(decay=0.9, nesterov=True)), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    (
      dict(optax_name="momentum_hp", optax=dict(momentum=0.8, dtype="float32"), schedule=dict(decay_type="linear")),
      optax.sgd(optax.linear_schedule(0.1, 0.0, TOTAL), momentum=0.8),
    ),
    (dict(optax_name="scale_by_lion"), optax.lion(0.1, weight_decay=0.0)),
    (dict(optax_name="scale_by_factored_rms"), optax.chain(optax.scale_by_factored_rms(), optax.scale(-0.1))),
    (dict(grad_clip_norm=1.0, optax_name="identity"), optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))),
    (dict(grad_clip_norm=1e3, optax_name="identity"), optax.sgd(0.1)),
    (dict(grad_clip_norm=None, wd=None, lr_mults=None, optax=None, optax_name="identity"), optax.sgd(0.1)),
  ],
)
def test_an_optimizer_of_optax_is_met(config, witness):

  def layer(tree):
    return {"layer": tree["head"]}

  assert_close(trained(make(layer(tree(0)), **config)[0], part=layer), trained(witness, part=layer))


def test_the_update_is_its_equation_with_everything_on():
  config = dict(
    optax_name="identity",
    lr=0.1,
    lr_mults=[("head/.*", 10.0), ("embedding/kernel", 0.5)],
    wd=0.01,
    wd_mults=[("head/kernel", 3.0), (".*/bias", 2.0)],
    grad_clip_norm=0.7,
    schedule=[("head/.*", dict(decay_type="linear", mult=0.3)), (".*", dict(decay_type="rsqrt", timescale_steps=4))],
  )
  tx, schedules = make(**config)
  assert len(schedules) == 2
  params, state, update = tree(0), tx.init(tree(0)), jax.jit(tx.update)
  for step in range(4):
    gradients = tree(100 + step)
    updates, state = update(gradients, state, params)
    norm = np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(gradients)))
    named = [dict(trees.flatten_with_names(t)) for t in (gradients, params, updates)]
    for name, g, p, u in ((name, *(np.float64(t[name]) for t in named)) for name in named[0]):
      head = name.startswith("head/")
      schedule = 0.3 * (1 - step / TOTAL) if head else 1 / np.sqrt(1 + step / 4)
      lr = 0.1 * (10.0 if head else 0.5 if name == "embedding/kernel" else 1.0)
      wd = 0.01 * (3.0 if name == "head/kernel" else 2.0 if name.endswith("bias") else 0.0)
      np.testing.assert_allclose(u, -schedule * (lr * g * min(1, 0.7 / norm) + wd * p), rtol=1e-4, err_msg=name)
    params = optax.apply_updates(params, updates)


def test_lr_mults_scale_the_matched_and_leave_the_others_bit_for_bit():
  plain, scaled = first_update(make()[0]), first_update(make(lr_mults=[("head/.*", 4.0)])[0])
  for name in plain:
    np.testing.assert_array_equal(scaled[name], plain[name] * (4.0 if name.startswith("head/") else 1.0))


@pytest.mark.parametrize(
  "wd_mults, decayed", [(None, "kernel"), ([(".*/bias", 0.5)], "bias"), ([("nothing", 1.0)], None), ([], "")]
)
def test_wd_mults_decay_the_matched_and_leave_the_others_bit_for_bit(wd_mults, decayed):
  if decayed is None:
    with pytest.raises(UserError, match=r"config.wd_mults: 'nothing' matches no parameter"):
      make(wd=0.1, wd_mults=wd_mults)
    return
  plain, wd = first_update(make(lr=0.0)[0]), first_update(make(lr=0.0, wd=0.1, wd_mults=wd_mults)[0])
  params = dict(trees.flatten_with_names(tree(0)))
  for name in plain:
    rate = {"kernel": 0.1, "bias": 0.05}[decayed] if decayed and name.endswith(decayed) else 0.0
    np.testing.assert_allclose(wd[name], plain[name] - np.float32(rate) * params[name], rtol=1e-6)


FROZEN = [("embedding/.*|head/bias", None), (".*", dict(decay_type="cosine"))]


@pytest.mark.parametrize("optax_name", ["scale_by_adam", "trace", "big_vision.scale_by_adafactor", "identity"])
def test_frozen_parameters_stay_bit_identical_and_have_no_state(optax_name):
  arguments = dict(decay=0.9) if optax_name == "trace" else {}
  # Decay, clipping, a negative zero and an infinite gradient would all show, had they a way in.
  params = tree(0)
  params["embedding"]["bias"][0] = -0.0
  tx, schedules = make(
    params, optax_name=optax_name, optax=arguments, wd=0.1, wd_mults=[(".*", 1.0)], grad_clip_norm=1.0, schedule=FROZEN
  )
  assert len(schedules) == 1
  gradients = tree(100)
  gradients["embedding"] = jax.tree.map(lambda g: np.inf * g, gradients["embedding"])
  updates, state = jax.jit(lambda gradients, params: tx.update(gradients, tx.init(params), params))(gradients, params)
  after = jax.tree.map(np.add, params, updates)
  assert_same_bits(after["embedding"], params["embedding"])
  assert_same_bits(after["head"]["bias"], params["head"]["bias"])
  assert np.all(after["head"]["kernel"] != params["head"]["kernel"])
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
  names = [name for name, _ in trees.flatten_with_names(state)]
  assert not [name for name in names if "embedding" in name or name.endswith("head/bias")]
  assert any(name.endswith("/head/kernel") for name in names) == (optax_name != "identity")


def test_clipping_counts_only_the_trainable_parameters():
  tx, _ = make(optax_name="identity", lr=1.0, grad_clip_norm=1e-3, schedule=FROZEN)
  squares = sum(np.sum(np.square(update, dtype=np.float64)) for update in first_update(tx).values())
  assert np.isclose(np.sqrt(squares), 1e-3)


def test_adaptive_clipping_of_a_config_is_that_of_optax_before_the_transformation():

  def body(tree):
    return {"layer": tree["embedding"]}

  witness = optax.chain(optax.adaptive_grad_clip(0.01), optax.sgd(0.1, momentum=0.9))
  config = dict(optax_name="trace", optax=dict(decay=0.9))
  tx = make(body(tree(0)), agc=dict(clipping=0.01), **config)[0]
  assert_close(trained(tx, part=body), trained(witness, part=body))
  with_head = make(agc=dict(clipping=1e-3), optax_name="identity")[0]
  without = make(agc=dict(clipping=1e-3, exclude=[]), optax_name="identity")[0]
  gradients = dict(trees.flatten_with_names(tree(100)))
  assert_close(first_update(with_head)["head/kernel"], -0.1 * gradients["head/kernel"])
  assert np.all(np.abs(first_update(without)["head/kernel"]) < 0.01 * np.abs(gradients["head/kernel"]) + 1e-9)


def test_a_part_with_the_rest_frozen_trains_like_that_part_alone():
  schedule = [("head/.*", dict(decay_type="cosine", warmup_steps=2)), (".*", None)]
  whole = trained(make(schedule=schedule, wd=0.01, grad_clip_norm=1.0)[0])
  alone = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, TOTAL),
      weight_decay=0.1,
      mask=lambda p: {"kernel": True, "bias": False},
    ),
  )
  assert_close(whole["head"], trained(alone, part=lambda tree: tree["head"]))


@pytest.mark.parametrize("optax_name", ["scale_by_adam", "scale_by_adafactor", "momentum_hp"])
def test_the_state_mirrors_the_parameters_by_name(optax_name):
  arguments = {} if optax_name != "scale_by_adafactor" else dict(min_dim_size_to_factor=4)
  state = jax.eval_shape(make(optax_name=optax_name, optax=arguments)[0].init, tree(0))
  shapes = {name: leaf.shape for name, leaf in trees.flatten_with_names(tree(0))}
  counts = 0
  for name, leaf in trees.flatten_with_names(state):
    owner = next((parameter for parameter in shapes if name.endswith("/" + parameter)), None)
    if owner is None:
      assert name.endswith("count")
      assert leaf.dtype == jnp.int32
      assert leaf.shape in ((), (2,))  # One count, or one a layer of those that are stacked.
      counts += 1
    elif "/v" not in name:  # v, v_row and v_col are Adafactor's factored moments.
      assert leaf.shape == shapes[owner]
  assert counts >= 1


def test_a_restored_state_goes_on_bit_for_bit():
  config = dict(
    optax=dict(mu_dtype="bfloat16"), wd=0.01, schedule=dict(decay_type="cosine", warmup_steps=3), grad_clip_norm=1.0
  )
  tx, _ = make(**config)
  step, params = stepper(tx), tree(0)
  state = tx.init(params)
  for i in range(8):
    if i == 5:
      again, restored = jax.tree.map(np.array, (params, state))  # Copied to the host, as a checkpoint is.
    params, state = step(params, state, tree(100 + i))
  assert int(restored[1].count) == 5
  step = stepper(make(**config)[0])
  for i in range(5, 8):
    again, restored = step(again, restored, tree(100 + i))
  assert_same_bits((again, restored), (params, state))


@pytest.mark.parametrize("optax_name", ["scale_by_adam", "scale_by_adafactor"])
def test_compiled_and_eager_updates_agree(optax_name):
  rng = np.random.default_rng(0)
  params, gradients = (
    {"layer": {"kernel": rng.standard_normal((40, 40), np.float32), "bias": rng.standard_normal(40, np.float32)}}
    for _ in range(2)
  )
  tx, _ = make(params, optax_name=optax_name, wd=0.1, grad_clip_norm=1.0, schedule=dict(decay_type="cosine"))
  eager, eager_state = tx.update(gradients, tx.init(params), params)
  compiled, compiled_state = jax.jit(tx.update)(gradients, tx.init(params), params)
  assert_close(compiled, eager)
  assert_close(compiled_state, eager_state, rtol=1e-2)  # One step of bfloat16, where a rounding falls the other way.


def test_shapes_and_a_config_dict_are_enough():
  config = ml_collections.ConfigDict(dict(optax_name="scale_by_adam", lr=0.1, wd=0.01, optax=dict(mu_dtype="bfloat16")))
  config.schedule = dict(warmup_epochs=1, decay_type="cosine")
  config.lr_mults = [("head/.*", 0.1)]
  tx, (schedule,) = optimizer.make(parse(Optimizer, config), jax.eval_shape(lambda: tree(0)), sched_kw=SIZE)
  assert [float(schedule(step)) for step in (0, 5, TOTAL)] == [0, 1, 0]
  moments = {name: leaf.dtype for name, leaf in trees.flatten_with_names(jax.eval_shape(tx.init, tree(0)))}
  assert moments["0/inner_state/1/mu/head/kernel"] == jnp.bfloat16


@pytest.mark.parametrize("name", ["scale_by_adafactor", "momentum_hp"])
def test_the_published_names_mean_the_same_with_and_without_their_prefix(name):
  plain, prefixed = (jax.eval_shape(make(optax_name=n)[0].init, tree(0)) for n in (name, f"big_vision.{name}"))
  assert plain == prefixed


@pytest.mark.parametrize(
  "config, line",
  [
    (dict(lr=None), "config.lr must be a number that is not negative, got None"),
    (dict(lr="0.1"), "config.lr must be a number that is not negative, got '0.1'"),
    (dict(lr=float("inf")), "config.lr must be a number that is not negative, got inf"),
    (dict(lr=True), "config.lr must be a number that is not negative, got True"),
    (dict(wd=-1), "config.wd must be a number that is not negative, got -1"),
    (dict(wd_mults=[("hed/.*", 1.0)]), "config.wd_mults: 'hed/.*' matches no parameter"),  # Though wd is 0.
    (dict(wd_mults=[(".*", 1.0)]), "config.wd is missing; it is the weight decay that config.wd_mults multiplies"),
    (dict(agc=dict(exclude=[".*"])), "config.agc.exclude leaves no parameter to clip; leave config.agc out"),
    (
      dict(ema=dict(decay=0.9, start_steps=20)),
      "config.ema.start_steps: 20 steps leave none of the 20 steps of training to average",
    ),
    (dict(ema=dict(decay=0.9, start_percent=1.0)), "config.ema.start_percent: 20 steps leave none of the 20 steps"),
    (dict(optax_name="scale_by_adam", optax=dict(b1=1.0)), "config.optax.b1 must be a number in [0, 1), got 1.0"),
    (dict(optax_name="scale_by_adam", optax=dict(b2=1)), "config.optax.b2 must be a number in [0, 1), got 1"),
    (
      dict(optax_name="scale_by_adafactor", optax=dict(decay_offset=2**31)),
      "config.optax.decay_offset must be a whole number in [0, 2147483647], got 2147483648",
    ),
    (dict(optax_name="scale_by_amsgrad", optax=dict(b2=1)), "config.optax.b2 must be a number in [0, 1), got 1"),
    (dict(grad_clip_norm="big"), "config.grad_clip_norm must be a number that is not negative, got 'big'"),
    (
      dict(agc=dict(cliping=0.1)),
      "config.agc.cliping is no key of adaptive gradient clipping (did you mean 'clipping'?)",
    ),
    (dict(agc=dict(clipping=0)), "config.agc.clipping must be a number above 0, got 0"),
    (dict(agc=dict(eps="small")), "config.agc.eps must be a number above 0, got 'small'"),
    (
      dict(agc=dict(exclude="head/.*")),
      "config.agc.exclude must be a list of regular expressions or None, got 'head/.*'",
    ),
    (dict(agc=dict(exclude=["hed/.*"])), "config.agc.exclude: 'hed/.*' matches no parameter"),
    (
      dict(lr_mults=[("hed/.*", 2.0)]),
      "config.lr_mults: 'hed/.*' matches no parameter by its whole name (nearest: head/",
    ),
    (dict(lr_mults=[("head/.*", 0)]), "config.lr_mults[0][1] must be a number above 0, got 0: 0 would still decay the"),
    (dict(lr_mults=[("head/.*", "2")]), "config.lr_mults[0][1] must be a number above 0, got '2'"),
    (dict(lr_mults=[("head/(", 2)]), "config.lr_mults[0][0] must be a regular expression, got 'head/('"),
    (dict(lr_mults=[("head/.*",)]), "config.lr_mults[0] must be (a regular expression, a number above 0), got"),
    (
      dict(schedule=None),
      "config.schedule must be a dict or a list of (a regular expression, a dict or None), got None",
    ),
    (dict(schedule=[(".*", None)]), "config.schedule: every parameter is frozen"),
    (dict(schedule=[]), "config.schedule: no pattern matches embedding/bias"),
    (dict(schedule=[("head/.*", {})]), "config.schedule: no pattern matches embedding/bias"),
    (dict(schedule=[("head/.*", None), ("hed/.*", {}), (".*", {})]), "config.schedule: 'hed/.*' matches no parameter"),
    (dict(schedule=["abc"]), "config.schedule[0] must be (a regular expression, a dict or None), got 'abc'"),
    (
      dict(schedule="cosine"),
      "config.schedule must be a dict or a list of (a regular expression, a dict or None), got",
    ),
    (dict(schedule=dict(warmup_stpes=3)), "config.schedule.warmup_stpes is no key of the schedule stair (did you mean"),
    (dict(schedule=dict(base=3)), "config.schedule.base is not set here; scale a schedule by mult"),
    (dict(schedule=dict(total_steps=3)), "config.schedule.total_steps is not set here, but at the top of the config"),
    (
      dict(schedule=dict(warmup_steps=30)),
      "config.schedule.warmup_steps: 30 steps are longer than the 20 steps of train",
    ),
    (
      dict(schedule=[("head/.*", None), (".*", dict(warmup_steps=19, cooldown_steps=9))]),
      "config.schedule[1][1]: warmup of 19 steps and cooldown of 9 steps together are longer than the 20 steps of",
    ),
    (dict(grad_accum_steps=0), "config.grad_accum_steps must be a whole number from 1 on, got 0"),
  ],
)
def test_a_mistake_is_refused_in_one_line(config, line):
  with pytest.raises(UserError) as error:
    make(**config)
  assert str(error.value).startswith(line)
  assert "\n" not in str(error.value)


def test_a_task_may_freeze_parameters_whatever_the_schedule_says():
  recipe = parse(Optimizer, dict(optax_name="identity", lr=0.1))
  tx, schedules = optimizer.make(recipe, tree(0), sched_kw=SIZE, frozen=("embedding/.*", "head/.*"))
  assert len(schedules) == 1
  assert {name.split("/")[0] for name, update in first_update(tx).items() if np.any(update)} == {"encoderblock"}
