"""A small autoencoder with a code book that is no parameter: it follows the codes' averages instead of a gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from core.models.layers import Intermediates


class VectorQuantizer(nn.Module):
  """Takes the nearest entry of a code book for each vector (van den Oord et al. 2017, eq. 1 and 2).

  The code book is learned by moving averages (appendix A.1): of the number N of vectors that an entry is nearest to,
  and of their sum m. The entry is m / N. Both stand in the collection `codebook`, and training updates them after the
  codes are taken. Sums are over the whole batch, however many devices hold it. The gradient passes straight through.

  Attributes:
    codes: entries of the code book.
    decay: the share that the averages keep in each step, gamma in the paper.
  """

  codes: int
  decay: float = 0.99

  @nn.compact
  def __call__(
    self, z: Float[Array, "*batch dim"], *, train: bool = False
  ) -> tuple[Float[Array, "*batch dim"], Intermediates]:
    """Maps vectors to (their codes, named intermediates); with `train` it needs `mutable=["codebook"]`.

    The intermediates: "index" of each vector's code, and "commitment", the mean squared distance to the codes, whose
    gradient moves the vectors alone.
    """
    dim = z.shape[-1]
    counts = self.variable("codebook", "counts", jnp.ones, (self.codes,))
    sums = self.variable("codebook", "sums", self._random_codes, dim)
    book = sums.value / counts.value[:, None]
    vectors = jax.lax.stop_gradient(z).reshape(-1, dim)
    distances = jnp.sum(book**2, axis=1) - 2 * vectors @ book.T  # But for the square of the vector itself.
    index = jnp.argmin(distances, axis=1)
    quantized = book[index].reshape(z.shape)
    if train and not self.is_initializing():
      assigned = jax.nn.one_hot(index, self.codes)
      counts.value = self.decay * counts.value + (1 - self.decay) * assigned.sum(axis=0)
      sums.value = self.decay * sums.value + (1 - self.decay) * assigned.T @ vectors
    out: Intermediates = {"index": index.reshape(z.shape[:-1]), "commitment": jnp.mean((z - quantized) ** 2)}
    return z + jax.lax.stop_gradient(quantized - z), out

  def _random_codes(self, dim: int) -> Float[Array, "codes dim"]:
    return jax.random.normal(self.make_rng("params"), (self.codes, dim))


class QuantizedAutoencoder(nn.Module):
  """Maps an image to the codes of its patches and back.

  Attributes:
    patch: pixels a side of a patch.
    dim: numbers a code.
    codes, decay: see `VectorQuantizer`.
  """

  patch: int = 4
  dim: int = 8
  codes: int = 16
  decay: float = 0.99

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width channels"], *, train: bool = False
  ) -> tuple[Float[Array, "batch height width channels"], Intermediates]:
    """Maps images to (reconstructions, named intermediates); see `VectorQuantizer.__call__`."""
    size = (self.patch, self.patch)
    z = nn.Conv(self.dim, size, size, padding="VALID", name="encoder")(image)
    codes, out = VectorQuantizer(self.codes, self.decay, name="quantizer")(z, train=train)
    return nn.ConvTranspose(image.shape[-1], size, size, padding="VALID", name="decoder")(codes), out
