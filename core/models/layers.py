"""The parts that transformers share: attention, the MLP block, the encoder and the attention-pooling head.

Class names and the order of the submodules decide the names of the parameters, and those are the published ones.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from core.sharding import constrain

Intermediates = dict[str, jax.Array | dict]


def sincos2d(height: int, width: int, dim: int) -> Float[np.ndarray, "1 tokens dim"]:
  """Returns the fixed position embedding of a row-major grid: [sin(x w), cos(x w), sin(y w), cos(y w)].

  MoCo v3, Chen et al. 2021.
  `dim` must be a multiple of 4, at least 8: the frequencies run from 1 down to 1/10000 in dim / 4 geometric steps.
  """
  omega = 10_000.0 ** -np.linspace(0, 1, dim // 4)
  y, x = np.indices((height, width)).reshape(2, -1, 1) * omega
  return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)[None].astype(np.float32)


def sincos1d(length: int, dim: int) -> Float[np.ndarray, "1 length dim"]:
  """Returns the fixed positions of a sequence: [sin(l w), cos(l w)], w = 10000^(-2k/dim), k < dim / 2.

  Vaswani et al. 2017, section 3.5.
  Sines come first and cosines after them, instead of taking turns. `dim` must be even.
  """
  omega = 10_000.0 ** (-2 * np.arange(dim // 2) / dim)
  angles = np.arange(length)[:, None] * omega
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[None].astype(np.float32)


def attention_implementation(query: Float[Array, "batch tokens heads dim"]) -> str:
  """Returns `"cudnn"` (flash attention) where this process's GPU can run it for such queries, else `"xla"`.

  cuDNN asks for half precision, an NVIDIA GPU since Ampere, and a head size that is a multiple of 8, at most 128. A
  single query, that of the attention-pooling head, has no square of scores worth saving.
  """
  _, tokens, _, dim = query.shape
  fits = query.dtype in (jnp.bfloat16, jnp.float16) and dim % 8 == 0 and dim <= 128 and tokens > 1
  if not fits or jax.default_backend() != "gpu":
    return "xla"
  # AMD's GPUs state an architecture such as "gfx90a" here.
  major, _, _ = jax.local_devices()[0].compute_capability.partition(".")
  return "cudnn" if major.isdigit() and int(major) >= 8 else "xla"


def _attend(
  query: Float[Array, "batch queries heads dim"],
  key: Float[Array, "batch tokens heads dim"],
  value: Float[Array, "batch tokens heads dim"],
) -> Float[Array, "batch queries heads dim"]:
  """Computes attention that keeps no square of scores for the backward pass, whoever computes it.

  cuDNN's does so by itself (Dao et al. 2022). XLA's computes the scores again: for a ViT-L at 224 px half a percent of
  the step's FLOPs, in place of a third of its memory.
  """
  implementation = attention_implementation(query)
  attend = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
  if implementation == "xla" and query.shape[1] > 1:
    attend = jax.checkpoint(attend)
  return attend(query, key, value)


def skip_examples(
  rng: PRNGKeyArray, branch: Float[Array, "batch ..."], rate: float | Float[Array, ""]
) -> Float[Array, "batch ..."]:
  """Sets the whole `branch` of an example to 0 with probability `rate`, and keeps the mean: stochastic depth.

  Huang et al. 2016; what is kept is divided by 1 - rate, as dropout does, so that evaluation needs no scaling.
  """
  kept = jax.random.bernoulli(rng, 1 - rate, (branch.shape[0],) + (1,) * (branch.ndim - 1))
  return jnp.where(kept, branch / (1 - rate), 0).astype(branch.dtype)


class MultiHeadDotProductAttention(nn.Module):
  """flax's module of that name (parameters, initializers, numbers), computed by `jax.nn.dot_product_attention`.

  Vaswani et al. 2017, section 3.2. The softmax is float32 whatever the `dtype` of the matrix products. `qkv_bias`:
  whether query, key and value have a bias.
  """

  num_heads: int
  dtype: DTypeLike | None = None
  qkv_bias: bool = True

  @nn.compact
  def __call__(
    self, queries: Float[Array, "batch queries dim"], inputs: Float[Array, "batch tokens dim"]
  ) -> Float[Array, "batch queries dim"]:
    dim = queries.shape[-1]

    def project(name: str, x: Float[Array, "batch tokens features"]) -> Float[Array, "batch tokens heads head_dim"]:
      features = (self.num_heads, dim // self.num_heads)
      init = nn.initializers.xavier_uniform()
      return nn.DenseGeneral(features, use_bias=self.qkv_bias, kernel_init=init, dtype=self.dtype, name=name)(x)

    query = constrain(project("query", queries), "act_batch", "act_len", "act_heads")
    key, value = (constrain(project(name, inputs), "act_batch", None, "act_heads") for name in ("key", "value"))
    x = _attend(query, key, value)
    kernel_init = nn.initializers.xavier_uniform()
    return nn.DenseGeneral(dim, axis=(-2, -1), kernel_init=kernel_init, dtype=self.dtype, name="out")(x)


class MlpBlock(nn.Module):
  """Dense, GELU, dropout, Dense. `mlp_dim`, the size of what the second Dense reads, defaults to four times the width.

  `gelu`: "tanh", the approximation that the published models use, or "exact" (the error function), as
  in most models of PyTorch's world. With `swiglu` the first Dense is twice as wide, and the SiLU of its first half
  gates the second (Shazeer 2020, eq. 6).
  """

  mlp_dim: int | None = None
  dropout: float = 0.0
  dtype: DTypeLike | None = None
  gelu: str = "tanh"
  swiglu: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "... dim"], deterministic: bool = True) -> Float[Array, "... dim"]:
    init = dict(kernel_init=nn.initializers.xavier_uniform(), bias_init=nn.initializers.normal(1e-6))
    dim = x.shape[-1]
    mlp_dim = self.mlp_dim or 4 * dim
    x = nn.Dense(2 * mlp_dim if self.swiglu else mlp_dim, dtype=self.dtype, **init)(x)
    if self.swiglu:
      gate, x = jnp.split(x, 2, axis=-1)
      x = nn.silu(gate) * x
    else:
      x = nn.gelu(x, approximate=self.gelu == "tanh")
    x = constrain(x, "act_batch", "act_len", "act_mlp")
    x = nn.Dropout(self.dropout)(x, deterministic)
    return nn.Dense(dim, dtype=self.dtype, **init)(x)


def _sharded(x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
  return constrain(x, "act_batch", "act_len", "act_emb")


class EncoderBlock(nn.Module):
  """A pre-LN transformer block: x + attention(LN(x)), then x + MLP(LN(x)); dropout after attention and MLP.

  LayerNorm computes in and returns float32; the sum that runs through the blocks keeps the dtype of `x`. With
  `stoch_depth`, an example skips each of the two branches with probability `skip_rate` (Huang et al. 2016).
  """

  num_heads: int
  mlp_dim: int | None = None
  dropout: float = 0.0
  stoch_depth: bool = False
  dtype: DTypeLike | None = None
  qkv_bias: bool = True
  gelu: str = "tanh"
  swiglu: bool = False
  norm_eps: float = 1e-6

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens dim"], deterministic: bool = True, skip_rate: float | Float[Array, ""] = 0.0
  ) -> tuple[Float[Array, "batch tokens dim"], Intermediates]:
    out = {}
    x = _sharded(x)
    y = nn.LayerNorm(self.norm_eps)(x)
    y = out["sa"] = MultiHeadDotProductAttention(self.num_heads, self.dtype, self.qkv_bias)(y, y)
    y = nn.Dropout(self.dropout)(y, deterministic)
    x = out["+sa"] = _sharded(x + self._skip(y, deterministic, skip_rate))
    y = nn.LayerNorm(self.norm_eps)(x)
    mlp = MlpBlock(self.mlp_dim, self.dropout, self.dtype, self.gelu, self.swiglu)
    y = out["mlp"] = mlp(y, deterministic)
    y = nn.Dropout(self.dropout)(y, deterministic)
    x = out["+mlp"] = _sharded(x + self._skip(y, deterministic, skip_rate))
    return x, out

  def _skip(
    self, y: Float[Array, "batch tokens dim"], deterministic: bool, rate: float | Float[Array, ""]
  ) -> jax.Array:
    if deterministic or not self.stoch_depth:
      return y
    return skip_examples(self.make_rng("dropout"), y, rate)


class Encoder(nn.Module):
  """`depth` blocks and a final LayerNorm (Dosovitskiy et al. 2021, eq. 2 to 4).

  Args:
    stoch_depth: rate at which an example skips the last block; it grows linearly from 0 at the first.
    scan: one compiled block run `depth` times (nn.scan): compiles in the time of one block; the parameters are stacked
      on a leading axis under `encoderblock` instead of standing under `encoderblock_0`, `encoderblock_1`, ...
    remat_policy: what the forward pass keeps for the backward pass, a `core.recipe.models.options.RematPolicy` ("none":
      everything); by default "nothing_saveable" under scan, else "none".
    qkv_bias, gelu, swiglu: see `MultiHeadDotProductAttention` and `MlpBlock`.
    norm_eps: what every LayerNorm adds to the variance.
    final_norm: False leaves the final LayerNorm away.
  """

  depth: int
  num_heads: int
  mlp_dim: int | None = None
  dropout: float = 0.0
  stoch_depth: float = 0.0
  scan: bool = False
  remat_policy: str | None = None
  dtype: DTypeLike | None = None
  qkv_bias: bool = True
  gelu: str = "tanh"
  swiglu: bool = False
  norm_eps: float = 1e-6
  final_norm: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch tokens dim"], deterministic: bool = True
  ) -> tuple[Float[Array, "batch tokens dim"], Intermediates]:
    policy = self.remat_policy or ("nothing_saveable" if self.scan else "none")
    block = _rematerialized(policy, self.scan)
    shared = ("num_heads", "mlp_dim", "dropout", "dtype", "qkv_bias", "gelu", "swiglu", "norm_eps")
    options = {name: getattr(self, name) for name in shared} | {"stoch_depth": self.stoch_depth > 0}
    skip_rates = np.linspace(0, self.stoch_depth, self.depth, dtype=np.float32)
    names = [f"block{i:02d}" for i in range(self.depth)]
    out = {}
    if self.scan:
      blocks = _scanned(block, self.depth)
      x, stacked = blocks(**options, name="encoderblock")(x, deterministic, jnp.asarray(skip_rates))
      out = {name: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, name in enumerate(names)}
    else:
      for i, name in enumerate(names):
        x, out[name] = block(**options, name=f"encoderblock_{i}")(x, deterministic, skip_rates[i])
    out["pre_ln"] = x
    return (nn.LayerNorm(self.norm_eps, name="encoder_norm")(x) if self.final_norm else x), out


# Flax makes a class of a class here, in a way that two threads must not do at once. Each is made when a model is first
# traced, which is before a step of it is traced in the background.
@functools.cache
def _rematerialized(policy: str, scan: bool) -> type[nn.Module]:
  if policy == "none":
    return EncoderBlock
  # Inside scan the loop already keeps the compiler from merging the two forward passes into one. Argument 2 is
  # `deterministic` (0 is self): a Python bool, not an array.
  return nn.remat(
    EncoderBlock, prevent_cse=not scan, static_argnums=(2,), policy=getattr(jax.checkpoint_policies, policy)
  )


@functools.cache
def _scanned(block: type[nn.Module], depth: int) -> type[nn.Module]:
  return nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=(nn.broadcast, 0),
    length=depth,
  )


class MAPHead(nn.Module):
  """Multihead attention pooling: one learned query attends to all tokens (Zhai et al. 2022, section 3.2)."""

  num_heads: int
  mlp_dim: int | None = None
  dtype: DTypeLike | None = None
  gelu: str = "tanh"
  norm_eps: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch dim"]:
    batch, _, dim = x.shape
    probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, dim))
    x = MultiHeadDotProductAttention(self.num_heads, self.dtype)(jnp.tile(probe, (batch, 1, 1)), x)
    y = nn.LayerNorm(self.norm_eps)(x)
    x = x + MlpBlock(self.mlp_dim, dtype=self.dtype, gelu=self.gelu)(y)
    return x[:, 0]
