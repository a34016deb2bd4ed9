import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from core import sharding, trees
from core.optim import optimizer, transformations
from core.recipe.optimizer import Optimizer
from core.recipe.parse import parse

# Of one layer: a dense kernel that Adafactor factors, kernels of an attention, biases and a scale.
LAYER = {
  "dense": {"kernel": (48, 40), "bias": (40,)},
  "attention": {
    "query": {"kernel": (40, 2, 20), "bias": (2, 20)},
    "out": {"kernel": (2, 20, 40), "bias": (40,)},
  },
  "norm": {"scale": (40,)},
}
# What optax needs to be told, and its random noise, which is another in every tree.
NEEDED = dict(decay=0.9, max_delta=0.5, max_norm=0.5, threshold=0.1, step_size=0.1, clipping=0.1)
RANDOM = ("add_noise",)
ADAFACTOR = dict(dtype_momentum="float32")  # A half-precision momentum may be rounded to the other side.


def random_like(shapes, rng, scale=1.0):
  fill = lambda shape: (scale * rng.standard_normal(shape)).astype(np.float32)
  return jax.tree.map(fill, shapes, is_leaf=lambda x: isinstance(x, tuple))


def unrolled(depth, seed, scale=1.0):
  rng = np.random.default_rng(seed)
  shapes = {f"encoderblock_{i}": LAYER for i in range(depth)} | {
    "head": {"kernel": (40, 7)},
    "pos_embedding": (1, 9, 40),
  }
  return random_like(shapes, rng, scale)


def stack(tree):
  layers = [
    tree[name] for name in sorted((n for n in tree if n.startswith("encoderblock_")), key=lambda n: int(n[13:]))
  ]
  rest = {name: leaf for name, leaf in tree.items() if not name.startswith("encoderblock_")}
  return {"encoderblock": jax.tree.map(lambda *x: np.stack(x), *layers), **rest}


def named_as_unrolled(updates):
  named = {}
  for name, leaf in trees.flatten_with_names(jax.device_get(updates)):
    first, _, rest = name.partition("/")
    if first == "encoderblock":
      named.update({f"encoderblock_{i}/{rest}": layer for i, layer in enumerate(leaf)})
    else:
      named[name] = leaf
  return named


def updates_of(config, params, gradients):
  recipe = parse(Optimizer, {"optax_name": "identity", "lr": 1.0, **config})
  sizes = dict(total_steps=10, batch_size=8, data_size=40)
  tx, _ = optimizer.make(recipe, params, sched_kw=sizes)
  state, found = tx.init(params), []
  for gradient in gradients:
    update, state = tx.update(gradient, state, params)
    found.append(named_as_unrolled(update))
  return found


def names():
  """Every transformation that a config can name, with the least that it must be told."""
  for name, function in transformations.known().items():
    needed = [key for key, each in inspect.signature(function).parameters.items() if each.default is each.empty]
    if name not in RANDOM and set(needed) <= NEEDED.keys():
      yield name, {key: NEEDED[key] for key in needed}


CONFIGS = {
  **{name: dict(optax_name=name, optax=arguments) for name, arguments in names()},
  "scale_by_adafactor": dict(optax_name="scale_by_adafactor", optax=ADAFACTOR),
  "adafactor, clipped": dict(optax_name="scale_by_adafactor", optax=dict(clipping_threshold=0.5, **ADAFACTOR)),
  "factored from 32 on": dict(optax_name="scale_by_factored_rms", optax=dict(min_dim_size_to_factor=32)),
  "agc": dict(agc=dict(clipping=0.1)),
  "agc of some": dict(agc=dict(clipping=0.1, exclude=[".*/bias"])),
  "norm": dict(grad_clip_norm=0.5),
  "decay": dict(wd=0.1, wd_mults=[(".*/kernel", 1.0), (".*/scale", 0.5)]),
  "rates": dict(lr_mults=[(".*/attention/.*", 0.3)]),
  "head frozen": dict(schedule=[("head/.*", None), (".*", dict())], optax_name="scale_by_adafactor", optax=ADAFACTOR),
  "head alone": dict(
    schedule=[("head/.*", dict()), (".*", None)],
    optax_name="scale_by_adafactor",
    optax=ADAFACTOR,
    agc=dict(clipping=0.1),
  ),
}


# From 32 layers on their axis is one that Adafactor would factor.
@pytest.mark.parametrize(
  "name, depth",
  [*((name, 4) for name in CONFIGS), ("adafactor, clipped", 40), ("factored from 32 on", 40), ("agc", 40)],
)
def test_stacked_layers_are_updated_as_unrolled_ones(name, depth):
  params, gradients = unrolled(depth, 0), [unrolled(depth, seed, scale=seed) for seed in (1, 2)]
  plain = updates_of(CONFIGS[name], params, gradients)
  scanned = updates_of(CONFIGS[name], stack(params), [stack(each) for each in gradients])
  for one, other in zip(plain, scanned):
    assert one.keys() == other.keys()
    for key in one:
      np.testing.assert_allclose(other[key], one[key], rtol=1e-6, atol=1e-6 * np.abs(one[key]).max(), err_msg=key)


def test_the_states_of_stacked_layers_are_no_larger_and_lie_where_their_parameters_do():
  plain, scanned = unrolled(40, 0), stack(unrolled(40, 0))
  recipe = parse(Optimizer, dict(optax_name="scale_by_adafactor", lr=1.0))
  sizes = dict(total_steps=10, batch_size=8, data_size=40)
  states = [jax.eval_shape(optimizer.make(recipe, each, sched_kw=sizes)[0].init, each) for each in (plain, scanned)]
  numbers = [sum(x.size for x in jax.tree.leaves(state) if x.dtype != jnp.int32) for state in states]
  assert numbers[0] == numbers[1]
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ["fsdp"])
  place = lambda x: NamedSharding(mesh, PartitionSpec(*[None] * (x.ndim - 1), "fsdp"))
  where = sharding.follow_params(states[1], scanned, jax.tree.map(place, scanned))
  of_dense = {
    name.removesuffix("/encoderblock/dense/kernel").rpartition("/")[2]: (leaf.shape, tuple(spec.spec))
    for (name, leaf), spec in zip(trees.flatten_with_names(states[1]), jax.tree.leaves(where))
    if name.endswith("encoderblock/dense/kernel")
  }
  assert of_dense == {
    "v_row": ((40, 40), (None, "fsdp")),  # Of the columns, in the order of optax: its rows are the shorter axis.
    "v_col": ((40, 48), (None, None)),
    "v": ((40, 1), ()),
    "ema": ((40, 48, 40), (None, None, "fsdp")),
  }
