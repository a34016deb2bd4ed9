"""SAM and its kin against their equations in NumPy and double precision, and against optax.contrib's SAM."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from core import sharding
from core.errors import UserError
from core.optim import optimizer, sam, schedule
from core.recipe.optimizer import Optimizer
from core.recipe.parse import parse

jax.config.update("jax_num_cpu_devices", 8)

RNG = np.random.default_rng(0)
A = RNG.normal(size=(4, 4))
A = A @ A.T + np.eye(4)
X, Y = RNG.normal(size=(16, 5)), RNG.normal(size=(16, 2))
QUADRATIC = {"w": RNG.normal(size=4)}
TWO_LAYERS = {"first": RNG.normal(size=(5, 6)), "second": RNG.normal(size=(6, 2))}


# The losses and their gradients twice: in JAX, and by hand in NumPy, where parameters are one vector.


def quadratic(params):
  return params["w"] @ A @ params["w"] / 2


def two_layers(params):
  return jnp.mean(jnp.sum((jnp.tanh(X @ params["first"]) @ params["second"] - Y) ** 2, axis=1))


def quadratic_grad(w):
  return A @ w


def two_layers_grad(w):
  first, second = w[:30].reshape(5, 6), w[30:].reshape(6, 2)
  hidden = np.tanh(X @ first)
  error = 2 * (hidden @ second - Y) / len(X)
  return np.concatenate([(X.T @ (error @ second.T * (1 - hidden**2))).ravel(), (hidden.T @ error).ravel()])


LOSSES = {
  "quadratic": (quadratic, quadratic_grad, QUADRATIC),
  "two layers": (two_layers, two_layers_grad, TWO_LAYERS),
}


def vector(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def grads_at(loss, params):
  value, grads = jax.value_and_grad(loss)(params)
  return (value, {}), grads


def found(loss, params, **options):
  """`second_pass`'s direction, as a vector."""
  at = functools.partial(grads_at, loss)
  return vector(sam.second_pass(at, params, at(params)[1], **options)[1])


def in_numpy(grad, w, rho, alpha=0.0, adaptive=False, adaptive_perturbation=False, decompose_against="perturbed"):
  """From the papers' equations, and `adaptive_perturbation` from GSAM's code."""
  g = grad(w)
  t = np.abs(w) + 0.01 if adaptive else np.ones_like(w)
  step = np.abs(w) * g / np.linalg.norm(g) if adaptive_perturbation else t**2 * g / np.linalg.norm(t * g)
  sharp = grad(w + rho * step)
  if decompose_against == "clean":
    return g + alpha * (sharp - g * (g @ sharp) / (g @ g))
  return sharp - alpha * (g - sharp * (g @ sharp) / (sharp @ sharp))


OPTIONS = [
  dict(rho=0.05),
  dict(rho=0.5, adaptive=True),
  dict(rho=0.3, alpha=0.4),
  dict(rho=0.3, alpha=0.4, adaptive=True),
  dict(rho=0.3, adaptive_perturbation=True),
  dict(rho=0.3, alpha=0.4, adaptive_perturbation=True, decompose_against="clean"),
  dict(rho=0.3, alpha=0.4, decompose_against="clean"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_the_direction_is_that_of_the_papers_equations_in_double_precision(name, options):
  loss, grad, params = LOSSES[name]
  with jax.enable_x64(True):
    np.testing.assert_allclose(found(loss, params, **options), in_numpy(grad, vector(params), **options), rtol=1e-12)


def test_sam_is_that_of_optax():
  uphill = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
  tx = optax.contrib.sam(optax.sgd(0.1), uphill, opaque_mode=True)
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, TWO_LAYERS)
    grad = jax.grad(two_layers)
    updates, _ = tx.update(grad(params), tx.init(params), params, grad_fn=lambda params, _: grad(params))
    np.testing.assert_allclose(-0.1 * found(two_layers, params, rho=0.3), vector(updates), rtol=1e-10)


def test_the_gap_closes_and_the_perturbed_loss_falls_as_in_sam():
  """What GSAM claims of its direction, to first order (Zhuang et al. 2022, section 4)."""
  with jax.enable_x64(True):
    at = functools.partial(grads_at, two_layers)
    clean = at(TWO_LAYERS)[1]
    sharp = vector(at(sam.perturbed(TWO_LAYERS, clean, 0.3))[1])
    plain, gsam = (found(two_layers, TWO_LAYERS, rho=0.3, alpha=alpha) for alpha in (0.0, 0.4))
    np.testing.assert_allclose(gsam @ sharp, plain @ sharp)

    def gap(direction):
      return direction @ (sharp - vector(clean))

    assert gap(gsam) > gap(plain)


def test_with_a_radius_of_zero_it_is_the_gradient_to_the_last_bit():
  params = jax.tree.map(np.float32, TWO_LAYERS)
  plain = vector(grads_at(two_layers, params)[1])
  for options in (dict(), dict(adaptive=True), dict(adaptive_perturbation=True)):
    np.testing.assert_array_equal(found(two_layers, params, rho=0.0, **options), plain)


def test_at_a_minimum_nothing_is_perturbed_and_nothing_is_nan():
  zero = {"w": np.zeros(4, np.float32)}
  for options in OPTIONS:
    np.testing.assert_array_equal(found(quadratic, zero, **options), 0)


def test_bfloat16_parameters_are_perturbed_by_sums_in_float32():
  ones = {"w": jnp.ones(4_096, jnp.bfloat16)}
  moved = sam.perturbed(ones, ones, 64.0)["w"]
  assert moved.dtype == jnp.bfloat16
  np.testing.assert_array_equal(moved, 2.0)  # 64 / |g| = 1; in bfloat16 the square of |g| would end at 256.


def test_rho_follows_the_schedule_from_its_peak_to_its_end():
  linear = schedule.create(total_steps=100, decay_type="linear", warmup_steps=10, linear_end=0.1)
  rho = sam.rho_schedule(linear, 100, rho_max=0.6, rho_min=0.2)
  lr = np.asarray(linear(np.arange(100)))
  want = 0.2 + 0.4 * (lr - lr[99]) / (1 - lr[99])
  np.testing.assert_allclose([rho(step) for step in range(100)], np.maximum(want, 0.2), rtol=1e-5)
  assert rho(0) == np.float32(0.2)
  assert rho(10) == np.float32(0.6)
  constant = schedule.create(total_steps=100, decay_type="constant")
  assert sam.rho_schedule(constant, 100, rho_max=0.6, rho_min=0.2)(50) == np.float32(0.6)
  assert sam.rho_schedule(linear, 100, rho_max=0.3, rho_min=0.3)(50) == np.float32(0.3)


# LookSAM.


def looksam(options, steps, params, lr=0.02):
  """Returns the parameters after each step of gradient descent by `SamStep.gradients`."""
  recipe = parse(Optimizer, dict(optax_name="identity", lr=lr, sam=options))
  tx, schedules = optimizer.make(recipe, params, sched_kw=dict(total_steps=steps, batch_size=1, data_size=1))
  where = sharding.batch_sharding(sharding.make_mesh())
  step_by = sam.from_recipe(recipe, params, schedules, total_steps=steps, batch_sharding=where)

  def loss(params, batch, rng):
    return (two_layers(params), {})

  def grads_of(loss, params, batch, rng):
    return jax.value_and_grad(loss, has_aux=True)(params, batch, rng)

  state, way = tx.init(params), []
  for step in range(steps):
    _, grads, state = step_by.gradients(grads_of, loss, params, state, batch=None, rng=None, step=jnp.int32(step))
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    way.append(vector(params))
  return np.stack(way)


def test_looksam_is_its_equations_in_double_precision():
  with jax.enable_x64(True):
    way = looksam(dict(rho=0.3, every=3, reuse=0.6), 7, jax.tree.map(jnp.asarray, TWO_LAYERS))
  w, kept = vector(TWO_LAYERS), None
  for step in range(7):
    g = two_layers_grad(w)
    if step % 3 == 0:
      d = in_numpy(two_layers_grad, w, 0.3)
      kept = d - g * (g @ d) / (g @ g)
    else:
      d = g + 0.6 * np.linalg.norm(g) / np.linalg.norm(kept) * kept
    w = w - 0.02 * d
    np.testing.assert_allclose(way[step], w, rtol=1e-6)  # The rates are float32.


def test_looksam_at_every_step_is_sam():
  params = jax.tree.map(jnp.float32, TWO_LAYERS)
  np.testing.assert_array_equal(looksam(dict(rho=0.3, every=1), 3, params), looksam(dict(rho=0.3), 3, params))
  # Its first step, which is one of those with a second pass, is SAM's, too.
  one = looksam(dict(rho=0.3, every=2), 2, params)[0]
  np.testing.assert_allclose(one, looksam(dict(rho=0.3), 1, params)[0], rtol=1e-6)


def test_only_what_trains_has_a_kept_direction_and_only_looksam_keeps_one():
  rules = dict(schedule=[("first", None), (".*", {})], optax_name="identity", lr=0.1)
  sizes = dict(total_steps=1, batch_size=1, data_size=1)
  params = jax.tree.map(np.float32, TWO_LAYERS)
  names = {}
  for options in (dict(rho=0.1), dict(rho=0.1, every=2)):
    tx, _ = optimizer.make(parse(Optimizer, rules | dict(sam=options)), params, sched_kw=sizes)
    named = jax.tree_util.tree_leaves_with_path(tx.init(params))
    names[options.get("every", 1)] = [jax.tree_util.keystr(path) for path, _ in named if "direction" in str(path)]
  assert names[1] == []
  (name,) = names[2]
  assert name.endswith("direction['second']")


# Mistakes.


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(rho=-0.1), r"config.sam.rho must be a number that is not negative, got -0.1"),
    (dict(rho_max="big"), "config.sam.rho_max must be a number"),
    (dict(rho=float("inf")), "config.sam.rho must be a number"),
    (dict(rho_max=0.1, rho_min=0.2), "config.sam.rho_min 0.2 must not exceed rho_max, 0.1"),
    (dict(rho=0.1, alpha=-1), "config.sam.alpha must be a number that is not negative, got -1"),
    (dict(rho=0.1, every=0), "config.sam.every must be a whole number from 1 on, got 0"),
    (dict(rho=0.1, every=2.0), "config.sam.every must be a whole number"),
    (dict(rho=0.1, reuse=-0.5), "config.sam.reuse must be"),
    (dict(rho=0.1, adaptive=1), "config.sam.adaptive must be True or False, got 1"),
    (dict(rho=0.1, perturbation="local"), "config.sam.perturbation must be one of 'global', 'per_device', got 'local'"),
    (dict(rho=0.1, decompose_against="g"), "config.sam.decompose_against must be one of 'perturbed', 'clean', got"),
    (dict(rho=0.1, alfa=0.4), r"config.sam.alfa is no key of sam \(did you mean 'alpha'\?\)"),
    (dict(rho_max=0.1, lr_max=0.4), "config.sam.lr_max is read off config.schedule; leave it out"),
    (dict(rho=0.1, minimize_fp=True), "config.sam.minimize_fp is called decompose_against here"),
    (dict(), "config.sam: give rho, or rho_max and rho_min"),
    (dict(rho=0.1, rho_max=0.1), "config.sam: give rho, or rho_max and rho_min"),
    (dict(rho=0.1, rho_min=0.1), "config.sam.rho_min needs rho_max"),
    (dict(rho=None), "config.sam: give rho, or rho_max and rho_min"),
    (dict(rho=True), "config.sam.rho must be a number that is not negative, got True"),
    (dict(rho=float("nan")), "config.sam.rho must be a number that is not negative, got nan"),
  ],
)
def test_a_mistake_is_refused_in_one_line_before_anything_runs(options, words):
  with pytest.raises(UserError, match=words) as error:
    parse(Optimizer, dict(optax_name="identity", lr=0.1, sam=options))
  assert "\n" not in str(error.value)
