"""Pytrees by name: every leaf has a path joined by `/`, the names that published weights and config regexes use."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

PyTree = Any


def _key_name(key: Any) -> str:
  for attribute in ("key", "name", "idx"):  # DictKey and FlattenedIndexKey, GetAttrKey, SequenceKey.
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def path_name(path: Sequence[Any]) -> str:
  """The `/`-joined name of a JAX key path."""
  return "/".join(map(_key_name, path))


def flatten_with_names(tree: PyTree) -> list[tuple[str, Any]]:
  """`[("Transformer/encoder_norm/bias", leaf), ...]` in JAX's leaf order."""
  return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_names(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
  """`jax.tree.map`, with each leaf's name as the first argument of `fn`."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest)


def first_match(name: str, patterns: Sequence[str]) -> int | None:
  """Index of the first regex that matches all of `name`, or None."""
  return next((i for i, pattern in enumerate(patterns) if re.fullmatch(pattern, name)), None)


def from_names(named: dict[str, Any]) -> dict[str, Any]:
  """The nested dict whose `flatten_with_names` is `named`."""
  tree: dict[str, Any] = {}
  for name, leaf in named.items():
    *folders, last = name.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = leaf
  return tree
