"""Runs of big_vision go on here; the witness is one more step of the chain of optax's transformations that it makes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core import trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import two_towers, vit
from core.optim import adafactor
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.tasks.task import Task
from core.testing import big_vision_checkpoint, compilation
from core.testing.params import random_like
from core.training import big_vision_state, state_init
from core.training.big_vision_state import Stored

TINY = dict(patch_size=8, width=32, depth=2, mlp_dim=48, num_heads=2)
LENGTHS = dict(total_steps=100, batch_size=8, data_size=100)
IMAGE = np.zeros((1, 32, 32, 3), np.float32)
TEXT = np.zeros((1, 4), np.int32)


class Of(Task):
  """A task of these parameters."""

  def __init__(self, params, frozen=(), load=None):
    self._params, self.frozen, self.load = params, frozen, load

  def init(self, rng, batch):
    return {"params": jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._params)}

  def loss(self, variables, batch, rng):
    raise NotImplementedError

  @property
  def predict(self):
    return {}


quick_compilation = compilation.quick()


def of_vit(**options):
  model = vit.Model(7, **TINY | options)
  return random_like(jax.eval_shape(model.init, jax.random.key(0), IMAGE)["params"])


def of_siglip(scan=False):
  text = dict(width=32, depth=2, mlp_dim=48, num_heads=2, vocab_size=40, scan=scan)
  model = two_towers.Model(
    image=TINY | dict(pool_type="map", scan=scan), text=text, out_dim=(None, 32), bias_init=-10.0
  )
  return random_like(jax.eval_shape(model.init, jax.random.key(0), IMAGE, TEXT)["params"])


def cosine(step):
  """Warm-up of 5 steps, then half a cosine to step 100."""
  progress = jnp.clip((step - 5) / 95, 0, 1)
  return jnp.minimum(1.0, step / 5) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


COSINE = dict(decay_type="cosine", warmup_steps=5)
PLAIN = dict(lr=0.01, schedule=COSINE)
# Config here; transformation and keys there.
OPTIMIZERS = {
  "adam": (
    dict(optax_name="scale_by_adam", optax=dict(b2=0.95, mu_dtype="bfloat16"), wd=1e-3, grad_clip_norm=1.0, **PLAIN),
    optax.scale_by_adam(b2=0.95, mu_dtype="bfloat16"),
    dict(wd=1e-3, grad_clip_norm=1.0),
  ),
  "adafactor": (
    dict(optax_name="big_vision.scale_by_adafactor", optax=dict(beta2_cap=0.95), wd=1e-3, **PLAIN),
    adafactor.scale_by_adafactor(beta2_cap=0.95),
    dict(wd=1e-3),
  ),
  "adafactor without momentum": (
    dict(optax_name="scale_by_adafactor", optax=dict(momentum=None), **PLAIN),
    adafactor.scale_by_adafactor(momentum=None),
    {},
  ),
  "momentum_hp": (
    dict(optax_name="big_vision.momentum_hp", grad_clip_norm=0.5, **PLAIN),
    optax.trace(0.9, accumulator_dtype=jnp.bfloat16),
    dict(grad_clip_norm=0.5),
  ),
  "sgd": (dict(optax_name="identity", **PLAIN), optax.identity(), {}),
}


def placed(params, config, **task):
  recipe = parse(
    Recipe, dict(total_steps=100, input=dict(data=dict(name="digits", split="train"), batch_size=8, pp="")) | config
  )
  return state_init.place(Of(params, **task), recipe, {"image": IMAGE}, lengths=LENGTHS)


def trained(params, tx, rules=((".*", cosine),), steps=3, **keys):
  """Returns big_vision's chain, its parameters and state after some steps, and gradients for one more."""
  chain = big_vision_checkpoint.optimizer(tx, rules, lr=0.01, **keys)(params)
  grads = [jax.tree.map(lambda p, i=i: jnp.asarray(np.sin(7 * p + i), p.dtype), params) for i in range(steps + 1)]
  update, state = jax.jit(chain.update), chain.init(params)
  for grad in grads[:-1]:
    updates, state = update(grad, state, params)
    params = optax.apply_updates(params, updates)
  return update, {"params": params, "opt": state}, grads[-1]


def assert_the_next_step_is_theirs(state, placement, update, theirs, grad):
  updates, _ = update(grad, theirs["opt"], theirs["params"])
  expected = dict(trees.flatten_with_names(optax.apply_updates(theirs["params"], updates)))
  updates, opt_state = jax.jit(placement.tx.update)(grad, state.opt_state, state.params)
  found = dict(trees.flatten_with_names(optax.apply_updates(state.params, updates)))
  for name, array in expected.items():
    np.testing.assert_allclose(found[name], array, rtol=2e-6, atol=1e-7, err_msg=name)
  assert opt_state[1].count == state.step + 1


def restored(path, placement):
  said = []
  stored = Stored(str(path))
  return big_vision_state.restore(stored, placement, {"image": IMAGE}, LENGTHS, said.append), said


CASES = [(name, scan, "checkpoint.bv") for name in OPTIMIZERS for scan in (False, True)]


@pytest.mark.parametrize("name, scan, form", [*CASES, ("adam", False, "checkpoint.npz")])
def test_a_vit_goes_on_as_it_would_have_there(tmp_path, name, scan, form):
  config, tx, keys = OPTIMIZERS[name]
  update, theirs, grad = trained(of_vit(scan=scan), tx, **keys)
  if form == "checkpoint.npz":
    big_vision_checkpoint.write_npz(tmp_path / form, theirs)
  else:
    big_vision_checkpoint.write(tmp_path, theirs, 3, keep=False)
  placement = placed(theirs["params"], config)
  state, said = restored(tmp_path / form, placement)
  assert said == []
  assert (int(state.step), int(state.opt_state[1].count)) == (3, 3)
  assert_the_next_step_is_theirs(state, placement, update, theirs, grad)


@pytest.mark.parametrize("scan", [False, True])
def test_two_towers_go_on_with_multipliers_several_schedules_and_a_frozen_tower(tmp_path, scan):
  half = lambda step: 0.5 * cosine(step)
  rules = [("img/.*", None), ("t|b", half), (".*", cosine)]
  _, theirs, _ = trained(
    of_siglip(scan), optax.scale_by_adam(), rules, wd=0.01, wd_mults=[(".*/kernel", 1.0), ("txt/.*", 0.5)],
    lr_mults=[("txt/head/.*", 0.1), ("t", 3.0)], grad_clip_norm=1.0,
  )  # fmt: skip
  big_vision_checkpoint.write(tmp_path, theirs, 3)
  config = dict(
    optax_name="scale_by_adam", lr=0.01, wd=0.01, wd_mults=[(".*/kernel", 1.0), ("txt/.*", 0.5)], grad_clip_norm=1.0,
    lr_mults=[("txt/head/.*", 0.1), ("t", 3.0)],
    schedule=[("img/.*", None), ("t|b", dict(decay_type="linear", warmup_steps=5)), (".*", COSINE)],
  )  # fmt: skip
  placement = placed(theirs["params"], config)
  state, said = restored(tmp_path / "checkpoint.bv-000000003", placement)
  assert said == []
  expected = dict(big_vision_checkpoint.named(theirs["opt"][1].inner_state.mu))
  moments = dict(trees.flatten_with_names(state.opt_state[0].inner_state[-1].mu))
  assert moments.keys() == expected.keys()
  assert not any(name.startswith("img/") for name in moments)
  for name, array in expected.items():
    np.testing.assert_array_equal(moments[name], array, err_msg=name)


@pytest.mark.parametrize("there, here", [(False, True), (True, False)])
@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_moments_go_on_across_scan(tmp_path, name, there, here):
  config, tx, keys = OPTIMIZERS[name]
  update, theirs, grad = trained(of_vit(scan=there), tx, **keys)
  big_vision_checkpoint.write(tmp_path, theirs, 3)
  placement = placed(of_vit(scan=here), config)
  state, said = restored(tmp_path / "checkpoint.bv", placement)
  assert said == []
  restacked = jax.tree.map(jnp.asarray, _restacked(grad, state.params))
  updates, _ = jax.jit(placement.tx.update)(restacked, state.opt_state, state.params)
  found = _restacked(optax.apply_updates(state.params, updates), theirs["params"])
  updates, _ = update(grad, theirs["opt"], theirs["params"])
  expected = dict(trees.flatten_with_names(optax.apply_updates(theirs["params"], updates)))
  for key, array in trees.flatten_with_names(found):
    np.testing.assert_allclose(array, expected[key], rtol=2e-6, atol=1e-7, err_msg=key)


def _restacked(tree, like):
  named = big_vision_state._restacked(dict(trees.flatten_with_names(tree)), dict(trees.flatten_with_names(like)))
  return trees.from_names(named)


def test_layers_that_big_vision_factors_as_one_array_keep_the_moments_that_it_has_of_them(tmp_path):
  options = dict(min_dim_size_to_factor=4, momentum=None)
  _, theirs, _ = trained(of_vit(scan=True, depth=5), adafactor.scale_by_adafactor(**options))
  big_vision_checkpoint.write(tmp_path, theirs, 3)
  config = dict(optax_name="scale_by_adafactor", optax=options, **PLAIN)
  state, said = restored(tmp_path / "checkpoint.bv", placed(theirs["params"], config))
  assert said == []
  there = jax.device_get(theirs["opt"][1].inner_state[0])
  here = jax.device_get(state.opt_state[0].inner_state[-1][1].inner_state[0])
  bias = lambda tree: tree["Transformer"]["encoderblock"]["MlpBlock_0"]["Dense_0"]["bias"]
  rows, columns = bias(there.v_row), bias(there.v_col)
  assert (rows.shape, columns.shape, bias(here.v).shape) == ((5,), (48,), (5, 48))
  np.testing.assert_allclose(bias(here.v), np.outer(rows, columns) / rows.mean(), rtol=1e-6)
  np.testing.assert_array_equal(here.count, [3] * 5)
  # [5, 32, 48], of which the layers are the shortest side.
  kernel = lambda tree: tree["Transformer"]["encoderblock"]["MlpBlock_0"]["Dense_0"]["kernel"]
  np.testing.assert_array_equal(kernel(here.v_row), kernel(there.v_row))
  np.testing.assert_array_equal(kernel(here.v_col), kernel(there.v_col))


@pytest.mark.parametrize(
  "tx, optax_name, words",
  [
    (optax.scale_by_adam(), "scale_by_lion", "those in the checkpoint are of another transformation"),
    (optax.trace(0.9), "scale_by_adam", "those in the checkpoint are of another transformation"),
    (optax.trace(0.9), "scale_by_rms", r"opt/1/0/0/\S+ holds negative numbers, and no second moments"),
    (optax.identity(), "big_vision.momentum_hp", "those in the checkpoint are of another transformation"),
  ],
)
def test_moments_of_another_transformation_start_anew_and_a_line_says_so(tmp_path, tx, optax_name, words):
  _, theirs, _ = trained(of_vit(), tx)
  big_vision_checkpoint.write(tmp_path, theirs, 3)
  placement = placed(theirs["params"], dict(optax_name=optax_name, **PLAIN))
  state, said = restored(tmp_path / "checkpoint.bv", placement)
  assert len(said) == 1
  assert said[0].startswith(f"config.resume: the moments of {optax_name} start anew: ")
  assert said[0].endswith("; parameters and step go on")
  assert re.search(words, said[0])
  for leaf in jax.tree.leaves(state.opt_state[0]):
    np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))
  assert (int(state.step), int(state.opt_state[1].count)) == (3, 3)


def test_what_is_frozen_here_leaves_its_moments_and_what_is_not_there_starts_all_anew(tmp_path):
  _, theirs, _ = trained(of_vit(), optax.scale_by_adam(), [("head/.*", None), (".*", cosine)])
  big_vision_checkpoint.write(tmp_path, theirs, 3)
  frozen = dict(optax_name="scale_by_adam", lr=0.01, schedule=[("(head|pos_emb).*", None), (".*", COSINE)])
  _, said = restored(tmp_path / "checkpoint.bv", placed(theirs["params"], frozen))
  assert said == ["config.resume: the moments of pos_embedding are left: it has none here, being frozen"]
  _, said = restored(tmp_path / "checkpoint.bv", placed(theirs["params"], dict(optax_name="scale_by_adam", **PLAIN)))
  assert said == [
    "config.resume: the moments of scale_by_adam start anew: the checkpoint has none of head/bias; parameters and step "
    "go on"
  ]


def test_an_average_begins_with_the_parameters_and_a_direction_of_look_sam_at_zero(tmp_path):
  _, theirs, _ = trained(of_vit(), optax.scale_by_adam())
  big_vision_checkpoint.write(tmp_path, theirs, 3)
  config = dict(optax_name="scale_by_adam", ema=dict(decay=0.9, dtype="float32"), sam=dict(rho=0.1, every=5), **PLAIN)
  placement = placed(theirs["params"], config)
  state, said = restored(tmp_path / "checkpoint.bv", placement)
  assert said == [
    "config.resume: big_vision keeps no direction of LookSAM: ours begins at zero",
    "config.resume: big_vision keeps no average of the parameters: ours begins with those of step 3",
  ]
  look_sam, average = (part.inner_state for part in state.opt_state[2:])
  assert all(not leaf.any() for leaf in jax.tree.leaves(look_sam))
  jax.tree.map(np.testing.assert_array_equal, average.average, jax.device_get(theirs["params"]))
  assert (int(average.count), int(state.opt_state[0].inner_state[-1].count)) == (0, 3)


def test_a_student_goes_on_beside_teachers_that_no_checkpoint_holds(tmp_path):
  update, theirs, grad = trained(of_vit(), optax.scale_by_adam())
  big_vision_checkpoint.write(tmp_path, theirs, 3)
  params = {"student": theirs["params"], "prof": of_vit(depth=1)}

  def load(variables):
    return {"params": variables["params"] | {"prof": params["prof"]}}

  config = dict(optax_name="scale_by_adam", **PLAIN)
  placement = placed(params, config, frozen=("prof/.*",), load=load)
  state, said = restored(tmp_path / "checkpoint.bv", placement)
  assert said == []
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(params))
  grads = {"student": grad, "prof": jax.tree.map(jnp.zeros_like, params["prof"])}
  theirs = {"params": {"student": theirs["params"], "prof": params["prof"]}, "opt": theirs["opt"]}
  updates, _ = update(grad, theirs["opt"], theirs["params"]["student"])
  expected = optax.apply_updates(theirs["params"]["student"], updates)
  updates, _ = jax.jit(placement.tx.update)(grads, state.opt_state, state.params)
  found = optax.apply_updates(state.params, updates)["student"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), found, expected)


def test_what_is_no_train_state_or_of_another_model_is_one_line(tmp_path):
  params = of_vit()
  config = dict(optax_name="scale_by_adam", **PLAIN)
  _, theirs, _ = trained(params, optax.scale_by_adam())
  folder = big_vision_checkpoint.write(tmp_path, theirs, 3)
  released, older, torn = (str(tmp_path / f"{name}.npz") for name in ("released", "older", "torn"))
  pretrained.save_params(released, params)
  np.savez(older, **{"opt/target/w": np.ones(3), "opt/state/step": np.int32(3)})
  np.savez(torn, **{"params/w": np.ones(3), "opt/2/0/0": np.int32(3), "opt/3/0/0": np.int32(4)})
  for spec, words in (
    (f"{tmp_path}/checkpoint.bv:Transformer", "a run goes on from a whole state; config.model_init takes a subtree"),
    (f"{tmp_path}/other.bv", r"other\.bv-LAST: no such file"),
    (released, "holds parameters alone; config.model_init starts from them"),
    (older, "holds no count of the steps of a schedule, opt/N/0/0; an optax state has one"),
    (torn, "holds several counts, 3, 4 of the steps of a schedule"),
  ):
    with pytest.raises(UserError, match=rf"^config\.resume: .*{words}"):
      Stored(spec)
  with pytest.raises(UserError, match=rf"^config\.resume: {folder}: not the weights of this model: it lacks cls"):
    big_vision_state.params_of(Stored(str(folder)), placed(of_vit(pool_type="tok"), config))
  (folder / "opt~1~0~2~head~bias").rename(tmp_path / "moved")
  with pytest.raises(UserError, match=r"it is not whole: opt/1/0/2/head/bias is missing$"):
    Stored(str(folder))
  (folder / "opt~1~0~1~head~bias" / "0").unlink()
  with pytest.raises(
    UserError, match=rf"^config\.resume: {folder}: opt/1/0/1/head/bias is not whole or cannot be read"
  ):
    Stored(str(folder))
