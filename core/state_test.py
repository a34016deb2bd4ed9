"""Seeds: each gives keys of its own, and those that 32 bits do not hold are refused."""

import jax
import numpy as np
import pytest

from core.errors import UserError
from core.recipe.parse import parse
from core.recipe.recipe import Recipe
from core.state import step_rng

CONFIG = dict(
  total_steps=1,
  optax_name="scale_by_adam",
  lr=0.1,
  schedule=dict(decay_type="cosine"),
  input=dict(data=dict(name="digits", split="train"), batch_size=8, pp="keep('image')"),
)


def refused(call):
  with pytest.raises(UserError) as error:
    call()
  return str(error.value)


@pytest.mark.parametrize("seed", [-1, -(2**32), 2**32, 2**64, 10**30])
def test_a_seed_that_32_bits_do_not_hold_is_refused(seed):
  right = "must be a whole number in [0, 4294967295], got"
  assert refused(lambda: parse(Recipe, {**CONFIG, "seed": seed})).startswith(f"config.seed {right} ")
  assert refused(lambda: step_rng(seed, 0)) == f"a seed {right} {seed}"


def test_seeds_to_the_last_have_the_keys_that_they_always_had():
  seeds = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
  assert [parse(Recipe, {**CONFIG, "seed": seed}).seed for seed in seeds] == seeds
  for seed in seeds:
    np.testing.assert_array_equal(jax.random.key_data(jax.random.key(seed)), [0, seed])  # Threefry's: high, low.
  drawn = {jax.random.key_data(step_rng(seed, 3)).tobytes() for seed in seeds}
  assert len(drawn) == len(seeds)
