"""Optimizers for large models that keep little state: the Adafactor of Scaling ViT, and half-precision momentum."""

import functools

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float


def scale_by_adafactor(
  min_dim_size_to_factor: int = 32,
  decay_rate: float = 0.8,
  decay_offset: int = 0,
  beta2_cap: float = 0.999,
  clipping_threshold: float | None = None,
  momentum: float | None = 0.9,
  dtype_momentum: DTypeLike = jnp.bfloat16,
  eps: float = 1e-30,
) -> optax.GradientTransformation:
  """Returns Adafactor as Scaling ViT uses it: a factored second moment and a first moment in half precision.

  For a gradient g at step t = 1, 2, ..., the second moment decays with beta2 = min(beta2_cap, 1 - t^-decay_rate). Over
  the two largest axes of a parameter, R and C being the decayed means of g^2 + eps over columns and rows:

      V = R C / mean(R)                          (a parameter not factored keeps V, of its own shape)
      u = g / sqrt(V);  u = u / max(1, rms(u) / clipping_threshold)
      m = momentum m + (1 - momentum) u          (the update is m before its rounding to `dtype_momentum`)

  It differs from Shazeer & Stern 2018 (arXiv:1804.04235) by the cap on beta2 (without one, the second moment stops
  moving), the half-precision momentum, and neither scaling by the parameter nor, by default, clipping: Zhai et al.
  2021, section 3.4 (arXiv:2106.04560).

  Args:
    min_dim_size_to_factor: factors parameters whose second largest axis has at least this size.
    decay_rate: how fast beta2 approaches its cap.
    decay_offset: the step at which training, or fine-tuning, starts.
    beta2_cap: the largest beta2.
    clipping_threshold: largest root mean square of a parameter's update; None for no clipping.
    momentum: decay of the first moment, in [0, 1); None or 0 keeps none.
    dtype_momentum: the type the first moment is stored in.
    eps: added to the squared gradient.
  """
  second_moment = optax.scale_by_factored_rms(
    decay_rate=decay_rate,
    step_offset=decay_offset,
    min_dim_size_to_factor=min_dim_size_to_factor,
    epsilon=eps,
    decay_rate_fn=functools.partial(_capped_decay, cap=beta2_cap),
  )
  clip = optax.clip_by_block_rms(clipping_threshold) if clipping_threshold else optax.identity()
  first_moment = optax.ema(momentum, debias=False, accumulator_dtype=dtype_momentum) if momentum else optax.identity()
  return optax.chain(second_moment, clip, first_moment)


def _capped_decay(step: ArrayLike, exponent: float, *, cap: float) -> Float[Array, ""]:
  """Returns beta2 at `step` (from 0): the power schedule of Adafactor, held below `cap`."""
  return jnp.minimum(cap, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)


def momentum_hp(
  momentum: float = 0.9, dtype: DTypeLike = jnp.bfloat16, nesterov: bool = False
) -> optax.GradientTransformation:
  """Returns momentum stored in half precision: m = g + momentum m, the update, or with `nesterov` g + momentum m."""
  return optax.trace(decay=momentum, accumulator_dtype=dtype, nesterov=nesterov)
