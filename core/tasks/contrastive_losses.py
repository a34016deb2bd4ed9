"""Contrastive losses between a batch of images and the texts that go with them, the whole batch over all devices.

Both compare every image with every text: logits l_ij = t <zimg_i, ztxt_j> + b, of which those with i = j are pairs.
A loss comes in three forms, equal in value and gradient (n: the batch, d: devices, k: `chunk`, D: the embedding):

    plain    all n^2 / d logits of a device at once, and autodiff;  memory n^2 / d
    chunked  each device gathers all texts and takes its images past k of them at a time;  memory n D + n k / d
    ring     each device passes its texts to its neighbour until they have been around (Zhai et al. 2023, section 3.3),
             k at a time as well;  memory (n / d) (D + k)

The last two compute logits a second time for the backward pass instead of keeping them. They cannot be differentiated
twice.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from core.errors import UserError, nearest

FORMS = ("plain", "chunked", "ring")

Totals = Float[Array, "n"]
Column = Float[Array, "n 1"]
Logits = Float[Array, "images texts"]
Pairs = Bool[Array, "images texts"]
Metrics = Mapping[str, jax.Array]


def softmax_contrastive(
  zimg: Float[Array, "batch dim"],
  ztxt: Float[Array, "batch dim"],
  t: Float[Array, "..."],
  *,
  mesh: Mesh | None = None,
  axis: str | Sequence[str] | None = None,
  form: str = "plain",
  chunk: int = 1_024,
) -> tuple[Float[Array, ""], Metrics]:
  """Computes the cross-entropy of finding each image's text and each text's image, in nats.

  The loss is the mean of the two directions (Radford et al. 2021, figure 3; Zhai et al. 2022, LiT, section 3.1).

  Args:
    zimg: embeddings of the images, of unit length; float32 or bfloat16. Products are summed in float32.
    ztxt: those of the texts, in the same order.
    t: the factor on similarities (the inverse of what is called temperature), a scalar or of shape (1,).
    mesh: the devices over which the batch is split; without, the memory-saving forms take it to be on one.
    axis: the mesh axes that split the batch; by default the first.
    form: one of FORMS.
    chunk: how many texts the memory-saving forms compare at a time, about: the nearest that divides the batch is taken.

  Returns:
    The loss, and of the batch: `ncorrect`, how many images are nearer to their own text than to any other;
    `img2txt_acc`, that as a share; `txt2img_acc`, the same for texts; `positive_logit`, the mean logit of pairs.

  Raises:
    UserError: an unknown form or axis, towers with outputs of different sizes, a batch that the devices cannot split.
  """
  return _contrastive(_SOFTMAX, zimg, ztxt, t, jnp.zeros(()), mesh=mesh, axis=axis, form=form, chunk=chunk)


def sigmoid_contrastive(
  zimg: Float[Array, "batch dim"],
  ztxt: Float[Array, "batch dim"],
  t: Float[Array, "..."],
  b: Float[Array, "..."],
  *,
  mesh: Mesh | None = None,
  axis: str | Sequence[str] | None = None,
  form: str = "plain",
  chunk: int = 1_024,
) -> tuple[Float[Array, ""], Metrics]:
  """Computes binary cross-entropies of telling pairs from all others, in nats.

  They are summed over texts and averaged over images (Zhai et al. 2023, SigLIP, section 3.2 and algorithm 1).

  Args:
    b: added to every logit, a scalar or of shape (1,); it starts far below 0, since few of the logits are of pairs.

  See `softmax_contrastive` for the rest.
  """
  return _contrastive(_SIGMOID, zimg, ztxt, t, b, mesh=mesh, axis=axis, form=form, chunk=chunk)


@dataclasses.dataclass(frozen=True)
class _Kind:
  """What tells one contrastive loss from another.

  Attributes:
    term: (logits, whether they are of pairs) -> terms, of the same shape.
    total: (terms, axis) -> their total for each image or text; totals of parts can be totalled again.
    start: the total of nothing.
    of_pairs: (totals of images, totals of texts, logits of pairs) -> the loss of each pair.
    slope: (logits, whether they are of pairs, totals of images, totals of texts) -> derivative of the pairs' summed
      loss by each logit.
  """

  term: Callable
  total: Callable
  start: float
  of_pairs: Callable
  slope: Callable


def _softmax_term(logits: Logits, pairs: Pairs) -> Logits:
  return logits


def _softmax_of_pairs(images: Totals, texts: Totals, positive: Totals) -> Totals:
  return (images + texts) / 2 - positive


def _softmax_slope(logits: Logits, pairs: Pairs, images: Column, texts: Totals) -> Logits:
  return (jnp.exp(logits - images) + jnp.exp(logits - texts)) / 2 - pairs


def _sigmoid_term(logits: Logits, pairs: Pairs) -> Logits:
  return jax.nn.softplus(jnp.where(pairs, -logits, logits))


def _sigmoid_of_pairs(images: Totals, texts: Totals, positive: Totals) -> Totals:
  return images


def _sigmoid_slope(logits: Logits, pairs: Pairs, images: Column, texts: Totals) -> Logits:
  return jax.nn.sigmoid(logits) - pairs


_SOFTMAX = _Kind(_softmax_term, jax.nn.logsumexp, -math.inf, _softmax_of_pairs, _softmax_slope)
_SIGMOID = _Kind(_sigmoid_term, jnp.sum, 0.0, _sigmoid_of_pairs, _sigmoid_slope)


class _Side(NamedTuple):
  """Statistics of each image over the texts that were compared with it so far, or of each text over images.

  Attributes:
    total: of the terms, as `_Kind.total` gives it.
    rival: the highest logit with another than its own.
  """

  total: Totals
  rival: Totals

  @classmethod
  def start(cls, kind: _Kind, like: Totals) -> "_Side":
    return cls(jnp.full_like(like, kind.start), jnp.full_like(like, -math.inf))


class _Stats(NamedTuple):
  """Statistics of images and of texts, and the logits of pairs."""

  images: _Side
  texts: _Side
  positive: Totals


@dataclasses.dataclass(frozen=True)
class _Plan:
  """How a loss is computed.

  Attributes:
    kind: which loss.
    form: one of FORMS.
    mesh: the devices; None for one.
    axes: the axes of the mesh that split the batch.
    chunk: about how many texts are compared at a time.
  """

  kind: _Kind
  form: str
  mesh: Mesh | None
  axes: tuple[str, ...]
  chunk: int

  @property
  def parts(self) -> int:
    """The number of parts into which the batch is split over devices."""
    return math.prod(self.mesh.shape[axis] for axis in self.axes) if self.mesh else 1

  def on_devices(self, fn: Callable, split: tuple[bool, ...]) -> Callable:
    """Returns `fn` as each device runs it, on its own part of the arguments that `split` marks and of the results."""
    if self.mesh is None:
      return fn
    batch = PartitionSpec(self.axes)
    in_specs = tuple(batch if each else PartitionSpec() for each in split)
    return jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=batch)


def _contrastive(kind: _Kind, zimg, ztxt, t, b, *, mesh, axis, form: str, chunk: int):
  if form not in FORMS:
    raise UserError(f"config.loss_form: there is no {form!r}{nearest(str(form), FORMS)}")
  if zimg.shape != ztxt.shape:
    raise UserError(
      f"config.model: {zimg.shape[0]} images of {zimg.shape[1]} numbers cannot be compared with {ztxt.shape[0]} texts "
      f"of {ztxt.shape[1]}; both towers must have one out_dim"
    )
  t, b = (jnp.asarray(x, jnp.float32).reshape(()) for x in (t, b))
  plan = _Plan(kind, form, mesh, _axes(mesh, axis), chunk)
  if len(zimg) % plan.parts:
    raise UserError(f"config.loss_form: {len(zimg)} pairs cannot be split over {plan.parts} devices")
  if form == "plain":
    return _summary(kind, _plain(plan, zimg, ztxt, t, b))
  return _saving(plan, zimg, ztxt, t, b)


def _axes(mesh: Mesh | None, axis: str | Sequence[str] | None) -> tuple[str, ...]:
  if mesh is None:
    return ()
  axes = (axis,) if isinstance(axis, str) else tuple(axis or mesh.axis_names[:1])
  for each in axes:
    if each not in mesh.axis_names:
      raise UserError(f"config.mesh has no axis {each!r}{nearest(each, mesh.axis_names)}")
  return axes


def _plain(plan: _Plan, zimg, ztxt, t, b) -> _Stats:
  logits = t * _similarities(zimg, ztxt) + b
  if plan.mesh is not None:
    logits = jax.lax.with_sharding_constraint(logits, NamedSharding(plan.mesh, PartitionSpec(plan.axes)))
  pairs = jnp.eye(len(zimg), dtype=bool)
  sides = [_side_of(plan.kind, logits, pairs, axis) for axis in (1, 0)]
  return _Stats(*sides, jnp.diagonal(logits))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _saving(plan: _Plan, zimg, ztxt, t, b):
  return _saving_forward(plan, zimg, ztxt, t, b)[0]


def _saving_forward(plan: _Plan, zimg, ztxt, t, b):
  numbers = jnp.arange(len(zimg), dtype=jnp.int32)
  fn = plan.on_devices(functools.partial(_stats, plan), (True, True, True, False, False))
  stats = fn(zimg, ztxt, numbers, t, b)
  return _summary(plan.kind, stats), (zimg, ztxt, t, b, stats.images.total, stats.texts.total)


def _saving_backward(plan: _Plan, kept, cotangents):
  zimg, ztxt, t, b, images, texts = kept
  numbers = jnp.arange(len(zimg), dtype=jnp.int32)
  fn = plan.on_devices(functools.partial(_gradients, plan), (True,) * 5 + (False,) * 3)
  scale = cotangents[0] / len(zimg)  # The metrics are not differentiated.
  dzimg, dztxt, dt, db = fn(zimg, ztxt, numbers, images, texts, t, b, scale)
  return dzimg, dztxt, jnp.sum(dt), jnp.sum(db)


_saving.defvjp(_saving_forward, _saving_backward)


def _stats(plan: _Plan, zimg, ztxt, numbers, t, b) -> _Stats:
  """Computes one device's part of the statistics, comparing its images with the texts of all devices."""
  kind = plan.kind

  def compare(images, texts, of_texts: _Side):
    side, positive = images
    z, their_numbers = texts
    logits = t * _similarities(zimg, z) + b
    pairs = numbers[:, None] == their_numbers
    side = _joined(kind, side, _side_of(kind, logits, pairs, 1))
    of_texts = _joined(kind, of_texts, _side_of(kind, logits, pairs, 0))
    return (side, positive + jnp.sum(jnp.where(pairs, logits, 0), axis=1)), of_texts

  def join(of_texts: _Side) -> _Side:
    ours = jax.tree.map(lambda x: _exchange(x, plan.axes, plan.parts), of_texts)
    return _Side(kind.total(ours.total, axis=0), jnp.max(ours.rival, axis=0))

  zeros = jnp.zeros_like(numbers, jnp.float32)
  start = _Side.start(kind, zeros)
  (images, positive), texts = _sweep(plan, compare, (start, zeros), (ztxt, numbers), start, join)
  return _Stats(images, texts, positive)


def _gradients(plan: _Plan, zimg, ztxt, numbers, images, texts, t, b, scale):
  """Computes one device's part of the gradients by zimg and ztxt, and its images' shares of those by t and b."""

  def compare(gradients, texts, dz_texts):
    dzimg, dt, db = gradients
    z, their_numbers, totals = texts
    similarities = _similarities(zimg, z)
    pairs = numbers[:, None] == their_numbers
    slope = scale * plan.kind.slope(t * similarities + b, pairs, images[:, None], totals)
    dzimg += t * _product("ij,jd->id", slope, z)
    dz_texts += t * _product("ij,id->jd", slope, zimg)
    return (dzimg, dt + jnp.sum(slope * similarities, axis=1), db + jnp.sum(slope, axis=1)), dz_texts

  def join(dz_texts):
    return jax.lax.psum_scatter(dz_texts, plan.axes, tiled=True)

  zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), (zimg, images, images, ztxt))
  (dzimg, dt, db), dztxt = _sweep(plan, compare, zeros[:3], (ztxt, numbers, texts), zeros[3], join)
  return dzimg.astype(zimg.dtype), dztxt.astype(ztxt.dtype), dt, db


def _sweep(plan: _Plan, compare: Callable, images: Any, texts: Any, of_texts: Any, join: Callable) -> tuple[Any, Any]:
  """Compares a device's images with the texts of all devices.

  Args:
    plan: how.
    compare: (images, texts, of_texts) -> (images, of_texts), for some of the texts: the statistics of images and texts
      after this comparison.
    images: the statistics of this device's images before any comparison.
    texts: this device's texts, arrays [texts, ...].
    of_texts: their statistics before any comparison, arrays [texts, ...].
    join: from the devices' statistics of all texts to those of this device's texts. For `chunked` alone.

  Returns:
    `images` and `of_texts` after the last comparison.
  """
  if plan.parts == 1:
    return _in_chunks(plan, compare, images, texts, of_texts)
  if plan.form == "chunked":
    of_all = jax.tree.map(functools.partial(_gathered, plan), (texts, of_texts))
    images, of_texts = _in_chunks(plan, compare, images, *of_all)
    return images, join(of_texts)

  def hop(carry, _):
    images, texts, of_texts = carry
    images, of_texts = _in_chunks(plan, compare, images, texts, of_texts)
    to_neighbour = [(i, (i + 1) % plan.parts) for i in range(plan.parts)]
    return (images, *jax.lax.ppermute((texts, of_texts), plan.axes, to_neighbour)), None

  # After as many hops as there are devices the texts are on their own device again, with the statistics of all hops.
  (images, _, of_texts), _ = jax.lax.scan(hop, (images, texts, of_texts), length=plan.parts)
  return images, of_texts


def _gathered(plan: _Plan, x: Float[Array, "texts ..."]) -> Float[Array, "batch ..."]:
  """Returns the rows of all devices."""
  return jax.lax.all_gather(x, plan.axes, tiled=True)


def _in_chunks(plan: _Plan, compare: Callable, images: Any, texts: Any, of_texts: Any) -> tuple[Any, Any]:
  """Compares images with the texts that are on this device, some at a time; see `_sweep`."""
  count = len(jax.tree.leaves(texts)[0])
  size = chunk_size(count, plan.chunk)
  parts = jax.tree.map(lambda x: x.reshape(count // size, size, *x.shape[1:]), (texts, of_texts))
  images, of_texts = jax.lax.scan(lambda images, part: compare(images, *part), images, parts)
  return images, jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), of_texts)


def chunk_size(count: int, wanted: int) -> int:
  """Returns the divisor of `count` that is nearest to `wanted`, by ratio."""
  divisors = {d for i in range(1, math.isqrt(count) + 1) if count % i == 0 for d in (i, count // i)}
  return min(sorted(divisors), key=lambda divisor: abs(math.log(divisor / wanted)))


def _exchange(x: Float[Array, "batch"], axes: tuple[str, ...], parts: int) -> Float[Array, "parts texts"]:
  """Returns the statistics of this device's texts that each device has."""
  return jax.lax.all_to_all(x.reshape(parts, -1), axes, split_axis=0, concat_axis=0)


def _side_of(kind: _Kind, logits: Logits, pairs: Pairs, axis: int) -> _Side:
  """Returns the statistics of images (axis 1) or of texts (axis 0)."""
  others = jnp.where(pairs, -math.inf, jax.lax.stop_gradient(logits))
  return _Side(kind.total(kind.term(logits, pairs), axis=axis), jnp.max(others, axis=axis))


def _joined(kind: _Kind, before: _Side, new: _Side) -> _Side:
  """Returns the statistics over the comparisons of both."""
  return _Side(kind.total(jnp.stack([before.total, new.total]), axis=0), jnp.maximum(before.rival, new.rival))


def _similarities(zimg: Float[Array, "images dim"], ztxt: Float[Array, "texts dim"]) -> Float[Array, "images texts"]:
  return _product("id,jd->ij", zimg, ztxt)


def _product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """Computes a product of embeddings in float32.

  Its cost is small beside that of the towers, and t multiplies its rounding errors.
  """
  if x.dtype != y.dtype:
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  return jnp.einsum(equation, x, y, precision="highest", preferred_element_type=jnp.float32)


def _summary(kind: _Kind, stats: _Stats) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
  """Computes the loss and the metrics of the whole batch."""
  images, texts, positive = stats
  loss = jnp.mean(kind.of_pairs(images.total, texts.total, positive))
  positive = jax.lax.stop_gradient(positive)
  found, named = (_count(positive > side.rival) for side in (images, texts))
  return loss, {
    "ncorrect": found,
    "img2txt_acc": found / len(positive),
    "txt2img_acc": named / len(positive),
    "positive_logit": jnp.mean(positive),
  }


def _count(hits: Bool[Array, "n"]) -> Int[Array, ""]:
  """Returns how many are true."""
  return jnp.sum(hits, dtype=jnp.int32)
