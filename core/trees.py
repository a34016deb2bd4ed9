"""Pytrees by name: every leaf has a path joined by `/`, the names that published weights and config regexes use."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

PyTree = Any

# Modules that a loop over layers (`nn.scan`) runs: each of their parameters holds all layers along its first axis. A
# model that stacks others adds their name.
_STACKED = frozenset({"encoderblock"})


def path_name(path: Sequence[Any]) -> str:
  """Returns the `/`-joined name of a JAX key path."""
  return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def flatten_with_names(tree: PyTree) -> list[tuple[str, Any]]:
  """Returns `[("Transformer/encoder_norm/bias", leaf), ...]` in JAX's leaf order."""
  return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def is_stacked(name: str) -> bool:
  """Tells whether the parameter of that name holds all layers of a loop, one after the other along its first axis."""
  return not _STACKED.isdisjoint(name.split("/"))


def map_with_names(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """Maps as `jax.tree.map` does, with each leaf's name as the first argument of `fn`."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest)


def first_match(name: str, patterns: Sequence[str]) -> int | None:
  """Returns the index of the first regex that matches all of `name`, or None."""
  return next((i for i, pattern in enumerate(patterns) if re.fullmatch(pattern, name)), None)


def from_names(named: dict[str, Any]) -> dict[str, Any]:
  """Returns the nested dict whose `flatten_with_names` is `named`."""
  tree: dict[str, Any] = {}
  for name, leaf in named.items():
    *folders, last = name.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = leaf
  return tree
