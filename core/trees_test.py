import jax
import jax.numpy as jnp
import optax

from core import trees
from core.state import TrainState


def test_names_join_the_path_of_dicts_sequences_and_named_tuples():
  tree = {"a": {"b": 1}, "c": [2, 3], "d": optax.TraceState(trace={"w": 4})}
  assert dict(trees.flatten_with_names(tree)) == {"a/b": 1, "c/0": 2, "c/1": 3, "d/trace/w": 4}


def test_every_kind_of_key_is_named_by_itself():
  keys = jax.tree_util
  path = (keys.DictKey(7), keys.DictKey("a b"), keys.GetAttrKey("mu"), keys.SequenceKey(3), keys.FlattenedIndexKey(5))
  assert trees.path_name(path) == "7/a b/mu/3/5"
  assert trees.path_name([]) == ""


def test_the_optimizer_states_and_train_states_of_ours_have_the_names_that_checkpoints_hold():
  params = {"layer": {"kernel": jnp.ones((2, 2))}}
  state = TrainState.create({"params": params}, optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params))
  names = [name for name, _ in trees.flatten_with_names(state)]
  assert names == [
    "step",
    "params/layer/kernel",
    *("opt_state/1/0/count", "opt_state/1/0/mu/layer/kernel", "opt_state/1/0/nu/layer/kernel"),
  ]


def test_map_with_names_keeps_the_structure():
  tree = {"a": {"b": jnp.ones(2)}, "c": jnp.zeros(3)}
  named = trees.map_with_names(lambda name, leaf: (name, leaf.size), tree)
  assert named == {"a": {"b": ("a/b", 2)}, "c": ("c", 3)}


def test_a_pattern_must_match_the_whole_name_and_the_first_wins():
  assert trees.first_match("head/kernel", ["head", "head/.*", ".*"]) == 1
  assert trees.first_match("head/kernel", ["kernel"]) is None


def test_from_names_inverts_flatten_with_names():
  tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
  assert trees.from_names(dict(trees.flatten_with_names(tree))) == tree
