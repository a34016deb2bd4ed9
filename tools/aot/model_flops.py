"""FLOPs that a model needs, counted from its jaxpr: what a step would compute on one device, nothing twice.

Matrix products and convolutions alone, a multiply-add being two. What rematerialization computes again is not counted,
nor what nothing depends on: the compiled step, which may do more, is compared with this.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jex
from jax.interpreters import partial_eval

_REMAT = ("checkpoint", "remat", "remat2")
_CALLS = ("jit", "pjit", "closed_call")


def count(fn: Callable[..., Any], *args: Any) -> int:
  """Counts the FLOPs of `fn(*args)`; the arguments may be shapes."""
  closed = jax.make_jaxpr(fn)(*args)
  needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
  return _of_jaxpr(needed)


def without_remat(fn: Callable[..., Any], *args: Any) -> Callable[..., Any]:
  """Returns `fn` of arguments of these shapes, with nothing marked for rematerialization.

  Its gradient keeps all it needs.
  """
  closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
  tree = jax.tree.structure(out)

  def plain(*args: Any) -> Any:
    return jax.tree.unflatten(tree, _evaluate(closed.jaxpr, closed.consts, *jax.tree.leaves(args)))

  return plain


def _evaluate(jaxpr: Any, consts: Any, *args: Any) -> list[Any]:
  """Runs a jaxpr's equations, what is marked for rematerialization as if it were not."""
  values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))

  def read(atom: Any) -> Any:
    return atom.val if isinstance(atom, jex.Literal) else values[atom]

  for eqn in jaxpr.eqns:
    inputs = [read(atom) for atom in eqn.invars]
    if eqn.primitive.name in _REMAT:
      outputs = _evaluate(eqn.params["jaxpr"], (), *inputs)
    elif eqn.primitive.name in _CALLS:
      inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
      outputs = _evaluate(inner.jaxpr, inner.consts, *inputs)
    else:
      params = dict(eqn.params)
      if eqn.primitive.name == "scan":
        body = params["jaxpr"]
        params["jaxpr"] = jax.make_jaxpr(lambda *xs, body=body: _evaluate(body.jaxpr, body.consts, *xs))(*body.in_avals)
      outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))
      outputs = outputs if eqn.primitive.multiple_results else [outputs]
    values.update(zip(eqn.outvars, outputs))
  return [read(atom) for atom in jaxpr.outvars]


def _of_jaxpr(jaxpr: Any) -> int:
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn: Any) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
  if name == "conv_general_dilated":
    return _of_convolution(eqn)
  inner = sum(map(_of_jaxpr, jex.jaxprs_in_params(params)))
  if name == "scan":
    return inner * params["length"]
  if name == "shard_map":
    # Its body is what each device does.
    return inner * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
  return inner


def _of_convolution(eqn: Any) -> int:
  """Counts every tap of the kernel, at the borders too, but not the zeros within a dilated input, of a gradient."""
  numbers, dilation = eqn.params["dimension_numbers"], eqn.params["lhs_dilation"]
  kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
  taps = math.prod(kernel[i] for i in numbers.rhs_spec[1:])  # One output's, of all its inputs.
  return 2 * math.prod(out) * taps // math.prod(dilation)
