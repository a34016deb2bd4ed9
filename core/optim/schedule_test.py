import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.errors import UserError
from core.optim import schedule
from core.recipe import schedule as recipe

TOTAL, BATCH, DATA = 400, 32, 640  # 20 steps an epoch.
STEPS = np.arange(0, TOTAL + 50)  # Past the end, too.
SIZE = dict(total_steps=TOTAL, batch_size=BATCH, data_size=DATA)
OPTIONS = {
  "constant": {},
  "cosine": {},
  "linear": dict(end=0.1),
  "polynomial": dict(power=2, linear_end=1e-3),
  "rsqrt": dict(timescale_steps=100),
  "stair": dict(steps=[100, 300], mults=[0.1, 0.01]),
}
# 40 steps in every unit.
UNITS = dict(steps=40, examples=40 * BATCH, epochs=2, percent=0.1)


def values(**kw):
  fn = schedule.create(**{**SIZE, **kw})
  return np.asarray(jax.jit(jax.vmap(fn))(STEPS))


def sampled(fn):
  return np.asarray(jax.vmap(fn)(STEPS))


def closed_form(decay_type, warmup=0, base=1.0, cooldown=0):
  """The same schedules in float64, from their equations (end, power and so on as in OPTIONS)."""
  q = np.clip((STEPS - warmup) / (TOTAL - warmup), 0, 1)
  decay = {
    "constant": base + 0 * q,
    "cosine": base * (1 + np.cos(np.pi * q)) / 2,
    "linear": 0.1 + (base - 0.1) * (1 - q),
    "polynomial": 1e-3 + (base - 1e-3) * (1 - q) ** 2,
    "rsqrt": base / np.sqrt(1 + np.maximum(STEPS - warmup, 0) / 100),
    "stair": base * np.where(STEPS < 100, 1, np.where(STEPS < 300, 0.1, 0.01)),
  }[decay_type]
  up = np.minimum(1, STEPS / warmup) if warmup else 1.0
  down = np.clip((TOTAL - STEPS) / cooldown, 0, 1) if cooldown else 1.0
  return decay * up * down


def test_every_decay_is_tested():
  assert OPTIONS.keys() == recipe.DECAYS.keys()


@pytest.mark.parametrize("decay_type", OPTIONS)
@pytest.mark.parametrize("base", [1.0, 3.0])
def test_a_decay_without_warmup_is_its_equation(decay_type, base):
  got = values(decay_type=decay_type, base=base, **OPTIONS[decay_type])
  np.testing.assert_allclose(got, closed_form(decay_type, base=base), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay_type", OPTIONS)
@pytest.mark.parametrize("unit", UNITS)
def test_warmup_and_cooldown_in_every_unit(decay_type, unit):
  lengths = {f"warmup_{unit}": UNITS[unit], f"cooldown_{unit}": 2 * UNITS[unit]}
  got = values(decay_type=decay_type, **lengths, **OPTIONS[decay_type])
  np.testing.assert_allclose(got, closed_form(decay_type, 40, cooldown=80), rtol=1e-5, atol=1e-6)
  assert got[0] == 0
  assert np.all(got[TOTAL:] == 0)


@pytest.mark.parametrize(
  "kw, witness",
  [
    (dict(decay_type="cosine"), optax.cosine_decay_schedule(1.0, TOTAL)),
    (dict(decay_type="cosine", warmup_steps=40), optax.warmup_cosine_decay_schedule(0.0, 1.0, 40, TOTAL)),
    (dict(decay_type="linear", end=0.2), optax.linear_schedule(1.0, 0.2, TOTAL)),
    (dict(decay_type="polynomial", power=3, end=0.2), optax.polynomial_schedule(1.0, 0.2, 3, TOTAL)),
    (
      dict(decay_type="linear", warmup_steps=40),
      optax.join_schedules([optax.linear_schedule(0, 1, 40), optax.linear_schedule(1, 0, TOTAL - 40)], [40]),
    ),
    (
      dict(steps=[100, 300], mults=[0.1, 0.01]),
      optax.piecewise_constant_schedule(1.0, {100: 0.1, 300: 0.1}),  # Optax's factors compound.
    ),
    (dict(decay_type="constant"), optax.constant_schedule(1.0)),
  ],
)
def test_schedules_of_optax_agree(kw, witness):
  want = np.broadcast_to(sampled(lambda step: jnp.asarray(witness(step))), STEPS.shape)
  if "steps" in kw:  # Optax moves to the next level one step after its boundary; ours holds it from the boundary on.
    inner = ~np.isin(STEPS, kw["steps"])
    np.testing.assert_allclose(values(**kw)[inner], want[inner], rtol=1e-6)
  else:
    np.testing.assert_allclose(values(**kw), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", UNITS)
def test_timescale_and_shift_of_rsqrt_in_every_unit(unit):
  got = values(decay_type="rsqrt", **{f"timescale_{unit}": UNITS[unit], f"shift_{unit}": UNITS[unit]})
  np.testing.assert_allclose(got, 1 / np.sqrt(1 + (STEPS + 40) / 40), rtol=1e-5)


def test_a_timescale_and_a_shift_beyond_int32_are_taken():
  got = values(decay_type="rsqrt", timescale_steps=5 * 10**9, shift_steps=15 * 10**9)
  np.testing.assert_allclose(got, 0.5, rtol=1e-4)


def test_rsqrt_has_a_timescale_of_10_000_steps_by_default():
  np.testing.assert_allclose(values(decay_type="rsqrt")[-1], 1 / np.sqrt(1 + STEPS[-1] / 10_000), rtol=1e-5)


def test_rsqrt_continues_at_another_batch_size_where_it_was():
  before = schedule.create(total_steps=10_000, decay_type="rsqrt", timescale_steps=100)
  after = schedule.create(total_steps=10_000, decay_type="rsqrt", timescale_steps=50, shift_steps=500)
  np.testing.assert_allclose([before(1000), before(3000)], [after(0), after(1000)], rtol=1e-6)


def test_cooldown_of_scaling_vit_is_linear_to_zero_from_the_rsqrt_value():
  got = values(decay_type="rsqrt", timescale_steps=100, cooldown_steps=100)
  assert np.isclose(got[TOTAL - 100], 1 / np.sqrt(1 + 300 / 100))
  last = got[TOTAL - 1]
  assert np.isclose(last, 1 / np.sqrt(1 + 399 / 100) / 100)


@pytest.mark.parametrize("key, unit", [("steps", "steps"), *((f"stair_{unit}", unit) for unit in UNITS)])
def test_a_stair_has_boundaries_in_every_unit(key, unit):
  got = values(decay_type="stair", mults=[0.5, 2], **{key: [UNITS[unit], 2 * UNITS[unit]]})
  np.testing.assert_array_equal(got[[0, 39, 40, 79, 80, 399]], [1, 1, 0.5, 0.5, 2, 2])


def test_without_options_a_schedule_is_its_base():
  assert np.all(values(base=0.25) == 0.25)


def test_base_may_follow_the_batch_size():
  assert np.all(values(base=2.0, scale_with_batchsize=True) == 2.0 * BATCH / 256)


@pytest.mark.parametrize("decay_type", OPTIONS)
def test_the_value_is_a_float32_scalar_and_the_same_traced_or_not(decay_type):
  fn = schedule.create(**SIZE, decay_type=decay_type, warmup_steps=10, cooldown_percent=0.5, **OPTIONS[decay_type])
  for step in (0, 7, 150, 399):
    eager, traced = fn(step), jax.jit(fn)(jnp.int32(step))
    assert eager.dtype == traced.dtype == jnp.float32
    assert eager.shape == traced.shape == ()
    np.testing.assert_allclose(eager, traced, rtol=1e-6)


def test_a_compiled_schedule_moves_nothing_between_host_and_device():
  fn = jax.jit(schedule.create(**SIZE, steps=[100], mults=[0.1], warmup_steps=10))
  step = jnp.int32(3)
  with jax.transfer_guard("disallow"):
    fn(step)


def test_two_halves_of_an_odd_number_of_steps_fit():
  fn = schedule.create(total_steps=7, decay_type="constant", warmup_percent=0.5, cooldown_percent=0.5)
  np.testing.assert_allclose([fn(step) for step in range(8)], [0, 1 / 4, 1 / 2, 3 / 4, 3 / 4, 1 / 2, 1 / 4, 0])


@pytest.mark.parametrize("total_steps", [0, 1])
def test_a_run_without_training_may_have_any_warmup(total_steps):
  assert schedule.create(total_steps=total_steps, decay_type="cosine", warmup_steps=100)(0) == 0


@pytest.mark.parametrize(
  "kw, line",
  [
    (dict(decay_type="cosin"), "config.schedule.decay_type: there is no 'cosin' (did you mean 'cosine'?)"),
    (dict(warmup_step=3), "config.schedule.warmup_step is no key of the schedule stair (did you mean 'warmup_steps'?)"),
    (dict(decay_type="cosine", power=2), "config.schedule.power belongs to decay_type linear or polynomial, and is no"),
    (dict(timescale_steps=2), "config.schedule.timescale_steps belongs to decay_type rsqrt"),
    (
      dict(warmup_steps=12_000, total_steps=5_000),
      "config.schedule.warmup_steps: 12,000 steps are longer than the 5,000",
    ),
    (dict(cooldown_epochs=21), "config.schedule.cooldown_epochs: 420 steps are longer than the 400 steps of training"),
    (
      dict(warmup_steps=201, cooldown_steps=200),
      "config.schedule: warmup of 201 steps and cooldown of 200 steps toget",
    ),
    (
      dict(warmup_percent=0.6, cooldown_percent=0.5),
      "config.schedule: warmup of 240 steps and cooldown of 200 steps tog",
    ),
    (dict(warmup_steps=1, warmup_epochs=1), "config.schedule: warmup_steps and warmup_epochs are both set"),
    (
      dict(warmup_epochs=1, data_size=None),
      "config.schedule.warmup_epochs cannot be turned into steps here; give config.",
    ),
    (
      dict(warmup_epochs=1e30, data_size=2**40),
      "config.schedule.warmup_epochs must be fewer steps than a counter holds",
    ),
    (dict(warmup_steps=None), "config.schedule.warmup_steps must be a number that is not negative, got None"),
    (dict(scale_with_batchsize=True, batch_size=None), "config.schedule.scale_with_batchsize needs a batch size"),
    (dict(decay_type="linear", end=0.1, linear_end=0.1), "config.schedule: end and linear_end are both set"),
    (dict(decay_type="linear", power="2"), "config.schedule.power must be a number above 0, got '2'"),
    (
      dict(decay_type="rsqrt", timescale_epochs=0),
      "config.schedule.timescale_epochs must be above 0, at least one step",
    ),
    (dict(steps=[10], mults=[0.1, 0.2]), "config.schedule.mults must be as many as the boundaries, 1, got 2"),
    (dict(steps=[10]), "config.schedule.mults must be as many as the boundaries, 1, got 0"),
    (
      dict(steps=[20, 10], mults=[0.1, 0.2]),
      "config.schedule.steps must increase from step to step, got the steps [20, 10]",
    ),
    (dict(stair_epochs=[1, 1.01], mults=[0.1, 0.2]), "config.schedule.stair_epochs must increase from step to step"),
    (dict(stair_epochs=[1], mults=[0.1], data_size=None), "config.schedule.stair_epochs cannot be turned into steps"),
    (dict(steps=[10], stair_epochs=[1], mults=[0.1]), "config.schedule: steps and stair_epochs are both set"),
    (
      dict(steps=10, mults=[0.1]),
      "config.schedule.steps must be a list of numbers that are not negative or None, got 10",
    ),
    (dict(steps=["a"], mults=[0.1]), "config.schedule.steps[0] must be a number that is not negative, got 'a'"),
  ],
)
def test_a_mistake_is_refused_in_one_line(kw, line):
  with pytest.raises(UserError) as error:
    schedule.create(**{**SIZE, **kw})
  assert str(error.value).startswith(line)
  assert "\n" not in str(error.value)
