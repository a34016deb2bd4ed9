import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.testing.vector_quantizer import QuantizedAutoencoder, VectorQuantizer

MODEL = VectorQuantizer(codes=5, decay=0.9)


@pytest.fixture(scope="module")
def vectors():
  return np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
  rng = np.random.default_rng(1)
  counts, sums = rng.uniform(1, 3, 5).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
  return {"codebook": {"counts": counts, "sums": sums}}


def nearest(variables, vectors):
  """Returns the code book, and the index of each vector's nearest entry, by the definition."""
  book = variables["codebook"]["sums"] / variables["codebook"]["counts"][:, None]
  return book, np.linalg.norm(vectors[..., None, :] - book, axis=-1).argmin(axis=-1)


def test_each_vector_becomes_the_nearest_entry(variables, vectors):
  (codes, out), changed = MODEL.apply(variables, vectors, mutable=["codebook"])
  book, index = nearest(variables, vectors)
  np.testing.assert_array_equal(out["index"], index)
  np.testing.assert_allclose(codes, book[index], atol=1e-6)
  np.testing.assert_allclose(out["commitment"], np.mean((vectors - book[index]) ** 2), rtol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, changed, variables)


def test_training_moves_counts_and_sums_by_a_tenth_towards_those_of_the_batch(variables, vectors):
  (codes, _), changed = MODEL.apply(variables, vectors, train=True, mutable=["codebook"])
  book, index = nearest(variables, vectors)
  np.testing.assert_allclose(codes, book[index], atol=1e-6)  # Of the code book before the step.
  for code in range(5):
    chosen = vectors[index == code]
    expected = {"counts": len(chosen), "sums": chosen.sum(axis=0)}
    for name, of_batch in expected.items():
      moved = 0.9 * variables["codebook"][name][code] + 0.1 * of_batch
      np.testing.assert_allclose(changed["codebook"][name][code], moved, rtol=1e-5, atol=1e-6)


def test_the_gradient_passes_straight_through_and_leaves_the_code_book_alone(variables, vectors):
  weights = np.random.default_rng(2).normal(size=vectors.shape).astype(np.float32)

  def loss(codebook, vectors):
    codes, out = MODEL.apply({"codebook": codebook}, vectors)
    return jnp.sum(codes * weights) + 0 * out["commitment"]

  of_book, of_vectors = jax.grad(loss, argnums=(0, 1))(variables["codebook"], vectors)
  np.testing.assert_allclose(of_vectors, weights, rtol=1e-6)
  for leaf in jax.tree.leaves(of_book):
    np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_the_commitment_draws_vectors_to_their_codes(variables, vectors):
  def commitment(vectors):
    return MODEL.apply(variables, vectors)[1]["commitment"]

  book, index = nearest(variables, vectors)
  np.testing.assert_allclose(jax.grad(commitment)(vectors), 2 * (vectors - book[index]) / vectors.size, atol=1e-6)


def test_an_autoencoder_starts_with_a_code_book_beside_its_parameters_and_learns():
  model = QuantizedAutoencoder(patch=4, dim=4, codes=8, decay=0.8)
  image = np.random.default_rng(3).normal(size=(16, 8, 8, 1)).astype(np.float32)
  variables = jax.jit(model.init)(jax.random.key(0), image)
  assert set(variables) == {"params", "codebook"}
  book = variables["codebook"]["quantizer"]
  np.testing.assert_array_equal(book["counts"], np.ones(8))
  assert np.std(book["sums"]) > 0.5

  @jax.jit
  def step(params, codebook):
    def loss(params):
      (found, out), changed = model.apply(
        {"params": params, "codebook": codebook}, image, train=True, mutable=["codebook"]
      )
      return jnp.mean((found - image) ** 2) + 0.25 * out["commitment"], changed["codebook"]

    (value, codebook), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return value, jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), codebook

  losses, params, codebook = [], variables["params"], variables["codebook"]
  for _ in range(60):
    value, params, codebook = step(params, codebook)
    losses.append(float(value))
  assert losses[-1] < 0.8 * losses[0]
