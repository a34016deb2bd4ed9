import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import expit, log_softmax, softmax

from core import sharding
from core.errors import UserError
from core.tasks import contrastive_losses
from core.testing import compilation

jax.config.update("jax_num_cpu_devices", 8)

LOSSES = {"softmax": contrastive_losses.softmax_contrastive, "sigmoid": contrastive_losses.sigmoid_contrastive}
T, B = 10.0, -3.0

quick_compilation = compilation.quick()


def embeddings(batch=32, dim=16, dtype=np.float32):
  """Unit vectors; the texts are more like their own images than others."""
  rng = np.random.default_rng(0)
  zimg = rng.normal(size=(batch, dim))
  pairs = np.stack([zimg, zimg + 1.5 * rng.normal(size=(batch, dim))])
  return tuple((pairs / np.linalg.norm(pairs, axis=-1, keepdims=True)).astype(dtype))


def reference(name, zimg, ztxt, t=T, b=B):
  """Loss and gradients by (zimg, ztxt, t, b) in double precision, from the papers' equations."""
  zimg, ztxt = zimg.astype(np.float64), ztxt.astype(np.float64)
  n, own = len(zimg), np.eye(len(zimg))
  similarities = zimg @ ztxt.T
  if name == "softmax":
    logits = t * similarities
    loss = -sum(np.mean(np.diagonal(log_softmax(logits, axis=axis))) for axis in (0, 1)) / 2
    slope = (softmax(logits, axis=0) + softmax(logits, axis=1) - 2 * own) / (2 * n)
  else:
    signs = 2 * own - 1
    logits = t * similarities + b
    loss = np.sum(np.logaddexp(0, -signs * logits)) / n
    slope = -signs * expit(-signs * logits) / n
  return loss, (t * slope @ ztxt, t * slope.T @ zimg, np.sum(slope * similarities), np.sum(slope))


def ours(zimg, ztxt, t=T, b=B, *, mesh=None, axis=None, form, chunk=2):
  """Of both losses `((loss, metrics), gradients)`, the batch split over the devices of the mesh."""
  where = NamedSharding(mesh, PartitionSpec(axis or "data")) if mesh else jax.devices()[0]

  def both(*arguments):
    options = dict(mesh=mesh, axis=axis, form=form, chunk=chunk)
    of = lambda loss, count: jax.value_and_grad(loss, argnums=range(count), has_aux=True)
    return {
      "softmax": of(lambda zimg, ztxt, t: LOSSES["softmax"](zimg, ztxt, t, **options), 3)(*arguments[:3]),
      "sigmoid": of(lambda *args: LOSSES["sigmoid"](*args, **options), 4)(*arguments),
    }

  return jax.device_get(jax.jit(both)(*jax.device_put((zimg, ztxt), where), t, b))


def assert_same(found, want, tolerance=1e-5):
  """Loss and gradients to within `tolerance` of their largest number."""
  (loss, _), gradients = found
  np.testing.assert_allclose(loss, want[0], rtol=tolerance)
  for gradient, of_reference in zip(gradients, want[1]):
    np.testing.assert_allclose(gradient, of_reference, rtol=0, atol=tolerance * np.max(np.abs(of_reference)))


@pytest.mark.parametrize("form", contrastive_losses.FORMS)
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_every_form_on_any_devices_is_the_papers_equation_in_double_precision(form, devices):
  zimg, ztxt = embeddings()
  found = ours(zimg, ztxt, mesh=sharding.make_mesh(devices=jax.devices()[:devices]), form=form)
  for name in LOSSES:
    assert_same(found[name], reference(name, zimg, ztxt))


@pytest.mark.parametrize("form", contrastive_losses.FORMS)
def test_without_a_mesh_the_batch_is_on_one_device(form):
  zimg, ztxt = embeddings(batch=6)
  found = ours(zimg, ztxt, np.array([T]), np.array([B]), form=form)
  for name in LOSSES:
    assert_same(found[name], reference(name, zimg, ztxt))


@pytest.mark.parametrize("form", contrastive_losses.FORMS)
@pytest.mark.parametrize("axis", ["data", ("data", "fsdp")])
def test_the_batch_may_be_split_over_some_axes_of_the_mesh_or_all(form, axis):
  zimg, ztxt = embeddings(batch=16)
  found = ours(zimg, ztxt, mesh=sharding.make_mesh([("data", 4), ("fsdp", 2)]), axis=axis, form=form)
  for name in LOSSES:
    assert_same(found[name], reference(name, zimg, ztxt))


@pytest.mark.parametrize("form", contrastive_losses.FORMS)
def test_products_of_bfloat16_are_summed_in_float32(form):
  zimg, ztxt = embeddings(dim=256, dtype=jnp.bfloat16)
  found = ours(zimg, ztxt, mesh=sharding.make_mesh(), form=form)
  for name in LOSSES:
    want = reference(name, zimg, ztxt)
    (loss, _), gradients = found[name]
    np.testing.assert_allclose(loss, want[0], rtol=1e-5)
    assert [gradient.dtype for gradient in gradients[:2]] == [jnp.bfloat16] * 2
    assert_same(found[name], want, tolerance=2**-7)  # Of a gradient that is bfloat16 in the end.


# CLIP's largest t; and logits whose exp overflows, of which float32 knows no more than three digits behind the point.
@pytest.mark.parametrize("t, b, tolerance", [(100.0, -10.0, 1e-5), (1e4, -1e3, 1e-3)])
@pytest.mark.parametrize("form", contrastive_losses.FORMS)
def test_large_logits_do_no_harm(form, t, b, tolerance):
  zimg, ztxt = embeddings()
  found = ours(zimg, ztxt, t, b, mesh=sharding.make_mesh(devices=jax.devices()[:2]), form=form)
  for name in LOSSES:
    assert_same(found[name], reference(name, zimg, ztxt, t, b), tolerance)


@pytest.mark.parametrize("form", contrastive_losses.FORMS)
def test_accuracy_is_that_of_the_highest_similarity(form):
  zimg, ztxt = embeddings()
  similarities = zimg @ ztxt.T
  right = [np.sum(np.argmax(similarities, axis=axis) == np.arange(32)) for axis in (1, 0)]
  assert all(0 < each < 32 for each in right)
  for name, ((_, metrics), _) in ours(zimg, ztxt, mesh=sharding.make_mesh(), form=form).items():
    assert metrics["ncorrect"] == right[0]
    assert metrics["img2txt_acc"] == right[0] / 32
    assert metrics["txt2img_acc"] == right[1] / 32
    want = T * np.mean(np.diagonal(similarities)) + (B if name == "sigmoid" else 0)
    np.testing.assert_allclose(metrics["positive_logit"], want, rtol=1e-5)


def compiled(name, form, batch):
  """Loss and gradient for embeddings of 768 numbers on 8 devices, compiled and not run."""
  mesh = sharding.make_mesh()
  z = jax.ShapeDtypeStruct((batch, 768), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
  arguments = (z, z, scalar) if name == "softmax" else (z, z, scalar, scalar)
  loss = lambda *args: LOSSES[name](*args, mesh=mesh, form=form)
  return jax.jit(jax.value_and_grad(loss, range(len(arguments)), has_aux=True)).lower(*arguments).compile()


@pytest.mark.parametrize("name", LOSSES)
def test_memory_at_a_batch_of_32768_is_linear_in_what_a_device_holds(name):
  batch, local = 32_768, 32_768 // 8
  programs = {form: compiled(name, form, batch) for form in contrastive_losses.FORMS}
  doubled = {form: compiled(name, form, 2 * batch) for form in ("chunked", "ring")}
  scratch = {form: program.memory_analysis().temp_size_in_bytes for form, program in programs.items()}
  logits = 4 * local * batch
  assert scratch["plain"] > 2.9 * logits
  assert scratch["chunked"] < 0.7 * logits
  assert scratch["ring"] < 0.2 * logits
  for form, program in doubled.items():
    assert program.memory_analysis().temp_size_in_bytes < 2.1 * scratch[form]

  # No array of images by texts is larger than a chunk.
  shapes = {form: _shapes(program.as_text()) for form, program in programs.items()}
  assert (local, batch) in shapes["plain"]
  for form in ("chunked", "ring"):
    assert max(rows * columns for rows, columns in shapes[form] if columns != 768) == local * 1_024
  # Nor does any device of the ring ever hold the texts of all.
  assert (batch, 768) in shapes["chunked"]
  assert (batch, 768) not in shapes["ring"]
  assert "all-gather" not in programs["ring"].as_text()
  assert "collective-permute" in programs["ring"].as_text()


def _shapes(hlo):
  """Every two-dimensional shape in a program."""
  return {tuple(map(int, shape)) for shape in re.findall(r"\w\[(\d+),(\d+)\]", hlo)}


def test_a_chunk_divides_what_it_is_a_part_of():
  assert contrastive_losses.chunk_size(4_096, 1_024) == 1_024
  assert contrastive_losses.chunk_size(1_000, 1_024) == 1_000
  assert contrastive_losses.chunk_size(3 * 1_024, 1_000) == 1_024
  assert contrastive_losses.chunk_size(4_099, 1_024) == 4_099  # A prime number; one at a time would take for ever.
  assert contrastive_losses.chunk_size(1, 1_024) == 1


def test_what_does_not_fit_is_refused():
  zimg, ztxt = embeddings(batch=6)
  mesh = sharding.make_mesh()
  with pytest.raises(UserError, match=r"config.loss_form: there is no 'rign' .did you mean 'ring'"):
    LOSSES["softmax"](zimg, ztxt, T, form="rign")
  with pytest.raises(UserError, match=r"no axis 'dat'.*did you mean 'data'"):
    LOSSES["softmax"](zimg, ztxt, T, mesh=mesh, axis="dat")
  with pytest.raises(UserError, match="6 pairs cannot be split over 8 devices"):
    LOSSES["softmax"](zimg, ztxt, T, mesh=mesh, form="ring")
  with pytest.raises(UserError, match=r"16 numbers cannot be compared with 6 texts of 8; .* one out_dim"):
    LOSSES["sigmoid"](zimg, ztxt[:, :8], T, B)
