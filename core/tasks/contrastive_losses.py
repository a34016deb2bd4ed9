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
  """Cross-entropy of finding each image's text and each text's image, the mean of the two directions, in nats.

  Radford et al. 2021, figure 3; Zhai et al. 2022 (LiT), section 3.1.

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
  """Binary cross-entropies of telling pairs from all others, summed over texts and averaged over images, in nats.

  Zhai et al. 2023 (SigLIP), eq. in section 3.2 and algorithm 1.

  Args:
    b: added to every logit, a scalar or of shape (1,); it starts far below 0, since few of the logits are of pairs.

  See `softmax_contrastive` for the rest.
  """
  return _contrastive(_SIGMOID, zimg, ztxt, t, b, mesh=mesh, axis=axis, form=form, chunk=chunk)


def check_form(form: Any) -> None:
  """Refuses what is no form of a contrastive loss.

  Raises:
    UserError: it names those there are.
  """
  if form not in FORMS:
    raise UserError(f"config.loss_form: no form {form!r}{nearest(str(form), FORMS)}")


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


_SOFTMAX = _Kind(
  term=lambda logits, pairs: logits,
  total=jax.nn.logsumexp,
  start=-math.inf,
  of_pairs=lambda images, texts, positive: (images + texts) / 2 - positive,
  slope=lambda logits, pairs, images, texts: (jnp.exp(logits - images) + jnp.exp(logits - texts)) / 2 - pairs,
)

_SIGMOID = _Kind(
  term=lambda logits, pairs: jax.nn.softplus(jnp.where(pairs, -logits, logits)),
  total=jnp.sum,
  start=0.0,
  of_pairs=lambda images, texts, positive: images,
  slope=lambda logits, pairs, images, texts: jax.nn.sigmoid(logits) - pairs,
)


class _Side(NamedTuple):
  """What is known of each image over the texts that it met, or of each text."""

  total: Float[Array, "n"]
  rival: Float[Array, "n"]  # The highest logit with another than its own.

  @classmethod
  def start(cls, kind: _Kind, like: Float[Array, "n"]) -> "_Side":
    return cls(jnp.full_like(like, kind.start), jnp.full_like(like, -math.inf))


class _Stats(NamedTuple):
  images: _Side
  texts: _Side
  positive: Float[Array, "n"]


@dataclasses.dataclass(frozen=True)
class _Plan:
  """How a memory-saving form goes about it; `mesh` None is one device."""

  kind: _Kind
  form: str
  mesh: Mesh | None
  axes: tuple[str, ...]
  chunk: int

  @property
  def parts(self) -> int:
    return math.prod(self.mesh.shape[axis] for axis in self.axes) if self.mesh else 1

  def on_devices(self, fn: Callable, split: tuple[bool, ...]) -> Callable:
    """`fn` on each device's part of the arguments that are split over the batch, as are all that it returns."""
    if self.mesh is None:
      return fn
    batch = PartitionSpec(self.axes)
    in_specs = tuple(batch if each else PartitionSpec() for each in split)
    return jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=batch)


def _contrastive(kind: _Kind, zimg, ztxt, t, b, *, mesh, axis, form: str, chunk: int):
  check_form(form)
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
  sides = [_met(plan.kind, logits, pairs, axis) for axis in (1, 0)]
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
  """One device's part of the statistics, by taking its images past the texts of all."""
  kind = plan.kind

  def meet(images, texts, of_texts: _Side):
    side, positive = images
    z, their_numbers = texts
    logits = t * _similarities(zimg, z) + b
    pairs = numbers[:, None] == their_numbers
    side = _joined(kind, side, _met(kind, logits, pairs, 1))
    of_texts = _joined(kind, of_texts, _met(kind, logits, pairs, 0))
    return (side, positive + jnp.sum(jnp.where(pairs, logits, 0), axis=1)), of_texts

  def join(of_texts: _Side) -> _Side:
    # From each device what it knows of our texts.
    ours = jax.tree.map(lambda x: _exchange(x, plan.axes, plan.parts), of_texts)
    return _Side(kind.total(ours.total, axis=0), jnp.max(ours.rival, axis=0))

  zeros = jnp.zeros_like(numbers, jnp.float32)
  start = _Side.start(kind, zeros)
  (images, positive), texts = _sweep(plan, meet, (start, zeros), (ztxt, numbers), start, join)
  return _Stats(images, texts, positive)


def _gradients(plan: _Plan, zimg, ztxt, numbers, images, texts, t, b, scale):
  """One device's part of the gradients by zimg and ztxt, and each of its images' share of those by t and b."""

  def meet(gradients, texts, dz_texts):
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
  (dzimg, dt, db), dztxt = _sweep(plan, meet, zeros[:3], (ztxt, numbers, texts), zeros[3], join)
  return dzimg.astype(zimg.dtype), dztxt.astype(ztxt.dtype), dt, db


def _sweep(plan: _Plan, meet: Callable, images: Any, texts: Any, of_texts: Any, join: Callable) -> tuple[Any, Any]:
  """Takes a device's images past the texts of all devices.

  Args:
    plan: how.
    meet: (images, texts, of_texts) -> (images, of_texts), for some of the texts: what is gathered about images and
      texts, with what comes from this meeting.
    images: what is gathered about this device's images, to begin with.
    texts: this device's texts, arrays [texts, ...].
    of_texts: what is gathered about them, to begin with; arrays [texts, ...].
    join: what the devices gathered about all texts -> what is known of this device's. For `chunked` alone.

  Returns:
    `images` and `of_texts` at the end.
  """
  if plan.parts == 1:
    return _in_chunks(plan, meet, images, texts, of_texts)
  if plan.form == "chunked":
    gather = lambda x: jax.lax.all_gather(x, plan.axes, tiled=True)
    images, of_texts = _in_chunks(plan, meet, images, *jax.tree.map(gather, (texts, of_texts)))
    return images, join(of_texts)

  def hop(carry, _):
    images, texts, of_texts = carry
    images, of_texts = _in_chunks(plan, meet, images, texts, of_texts)
    to_neighbour = [(i, (i + 1) % plan.parts) for i in range(plan.parts)]
    return (images, *jax.lax.ppermute((texts, of_texts), plan.axes, to_neighbour)), None

  # As many hops as devices bring the texts home, with all that was gathered about them on the way.
  (images, _, of_texts), _ = jax.lax.scan(hop, (images, texts, of_texts), length=plan.parts)
  return images, of_texts


def _in_chunks(plan: _Plan, meet: Callable, images: Any, texts: Any, of_texts: Any) -> tuple[Any, Any]:
  count = len(jax.tree.leaves(texts)[0])
  size = chunk_size(count, plan.chunk)
  parts = jax.tree.map(lambda x: x.reshape(count // size, size, *x.shape[1:]), (texts, of_texts))
  images, of_texts = jax.lax.scan(lambda images, part: meet(images, *part), images, parts)
  return images, jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), of_texts)


def chunk_size(count: int, wanted: int) -> int:
  """The divisor of `count` that is nearest to `wanted`, by ratio."""
  divisors = {d for i in range(1, math.isqrt(count) + 1) if count % i == 0 for d in (i, count // i)}
  return min(sorted(divisors), key=lambda divisor: abs(math.log(divisor / wanted)))


def _exchange(x: Float[Array, "batch"], axes: tuple[str, ...], parts: int) -> Float[Array, "parts texts"]:
  """From each device its numbers about our texts."""
  return jax.lax.all_to_all(x.reshape(parts, -1), axes, split_axis=0, concat_axis=0)


def _met(kind: _Kind, logits: Float[Array, "images texts"], pairs: Bool[Array, "images texts"], axis: int) -> _Side:
  others = jnp.where(pairs, -math.inf, jax.lax.stop_gradient(logits))
  return _Side(kind.total(kind.term(logits, pairs), axis=axis), jnp.max(others, axis=axis))


def _joined(kind: _Kind, before: _Side, met: _Side) -> _Side:
  return _Side(kind.total(jnp.stack([before.total, met.total]), axis=0), jnp.maximum(before.rival, met.rival))


def _similarities(zimg: Float[Array, "images dim"], ztxt: Float[Array, "texts dim"]) -> Float[Array, "images texts"]:
  return _product("id,jd->ij", zimg, ztxt)


def _product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """A float32 product: what these save by rounding is nothing beside the towers, and t makes the error large."""
  if x.dtype != y.dtype:
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  return jnp.einsum(equation, x, y, precision="highest", preferred_element_type=jnp.float32)


def _summary(kind: _Kind, stats: _Stats) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
  """Loss and metrics of the whole batch."""
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
  return jnp.sum(hits, dtype=jnp.int32)
