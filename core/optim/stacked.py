"""Layers that `scan` stacks along a parameter's first axis, seen one by one: stacking is no matter of the optimizer."""

from collections.abc import Callable

import jax
import optax

from core import trees


def layer_by_layer(tx: optax.GradientTransformation, params: trees.PyTree) -> optax.GradientTransformation:
  """Returns a transformation that treats each layer of a stacked parameter as a parameter of its own.

  The first axis of what is stacked is a batch axis of `tx`, in its state as well: a factored moment has one factor a
  layer. Without stacked layers it is `tx` itself.

  Args:
    tx: a transformation that treats each parameter by itself.
    params: the parameters, or their shapes.
  """
  depths = sorted({x.shape[0] for name, x in trees.flatten_with_names(params) if trees.is_stacked(name)})
  if not depths:
    return tx
  layers = optax.GradientTransformation(_mapped(tx.init), _mapped(tx.update))
  return optax.chain(optax.masked(tx, _of_depth(None)), *(optax.masked(layers, _of_depth(n)) for n in depths))


def _mapped(function: Callable) -> Callable:
  """Returns a function over the first axis of its arguments; without any parameter (all are frozen) there is none."""
  return lambda tree, *rest: (jax.vmap(function) if jax.tree.leaves(tree) else function)(tree, *rest)


def _of_depth(depth: int | None) -> Callable[[trees.PyTree], trees.PyTree]:
  """Returns the mask of the parameters that stack so many layers; None: of those that stack none."""

  def mask(tree: trees.PyTree) -> trees.PyTree:
    return trees.map_with_names(lambda name, x: (x.shape[0] if trees.is_stacked(name) else None) == depth, tree)

  return mask
