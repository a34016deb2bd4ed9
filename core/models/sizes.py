"""How large the models are: parameters, and the multiply-adds of a forward pass, counted in the traced program.

  ./bazelw run //core/models:sizes

prints the tables of README.md. Nothing is compiled or computed: a model is traced with shapes alone.

What is counted is a multiplication with an addition in a matrix product or convolution, as one operation: the FLOPs of
the NFNet paper (and of timm's "GMACs"). Scaling ViT's FLOPs are twice as many. Norms, activations, softmax and the
standardization of weights are left out, as they are there.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jax_core
from jaxtyping import Array, Float, Key, Shaped

from core.models import registry
from core.recipe.models.nfnet import VARIANTS as NFNETS


@dataclasses.dataclass(frozen=True)
class Size:
  """Of a model: the number of its parameters, and of multiply-adds in a forward pass."""

  params: int
  multiply_adds: int


@functools.cache
def measure(model: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Size:
  """Returns the size of a flax module that maps inputs of that shape, images or texts, to (output, intermediates).

  What only the intermediates need is not counted.
  """

  def output_and_params(
    rng: Key[Array, ""], inputs: Shaped[Array, "batch ..."]
  ) -> tuple[Float[Array, "batch ..."], Any]:
    (output, _), variables = model.init_with_output(rng, inputs)
    return output, variables["params"]

  inputs = jax.ShapeDtypeStruct(shape, dtype)
  traced, (_, params) = jax.make_jaxpr(output_and_params, return_shape=True)(jax.random.key(0), inputs)
  return Size(sum(leaf.size for leaf in jax.tree.leaves(params)), multiply_adds(traced))


def multiply_adds(program: jax_core.ClosedJaxpr | jax_core.Jaxpr) -> int:
  """Counts the multiply-adds in the products and convolutions that the program's results need.

  The body of a scan counts as often as it runs, of alternatives the largest counts. What runs inside a foreign kernel
  (cuDNN's attention, which needs bfloat16) is not seen.

  Raises:
    ValueError: products in a loop whose length the program does not tell.
  """
  jaxpr = program.jaxpr if isinstance(program, jax_core.ClosedJaxpr) else program
  needed = {id(var) for var in jaxpr.outvars}
  total = 0
  for equation in reversed(jaxpr.eqns):
    if any(id(var) in needed for var in equation.outvars):
      needed |= {id(var) for var in equation.invars}
      total += _of_equation(equation)
  return total


def _of_equation(equation: jax_core.JaxprEqn) -> int:
  output = equation.outvars[0].aval if equation.outvars else None
  match equation.primitive.name:
    case "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      return output.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    case "conv_general_dilated":
      kernel = equation.invars[1].aval
      return output.size * kernel.size // kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    case "cond":
      return max(map(multiply_adds, _programs(equation.params.values())))
  inner = sum(map(multiply_adds, _programs(equation.params.values())))
  if equation.primitive.name == "while" and inner:
    raise ValueError("a while loop with matrix products in it: how often it runs is not known before it does")
  return inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)


def _programs(values: Iterable[Any]) -> Iterator[jax_core.ClosedJaxpr | jax_core.Jaxpr]:
  """Yields those among the parameters of an equation, and in lists of them."""
  for value in values:
    if isinstance(value, jax_core.ClosedJaxpr | jax_core.Jaxpr):
      yield value
    elif isinstance(value, tuple | list):
      yield from _programs(value)


# The variants in README.md's table of image models by `model_name`, and the image sizes (pixels) they are measured at.
_VIT = "mu/16 Ti/16 S/32 S/16 M/16 B/32 B/16 L/16 So400m/14 H/14 g/14 g-opt/14 G/14 G-opt/14 e/14"
_MIXER = "S/32 S/16 B/32 B/16 L/32 L/16 H/14"
_RESNET = [f"{depth}x{width}" for depth in (26, 50, 101, 152) for width in (1, 2, 3, 4)]
VARIANTS: dict[str, dict[str, int]] = {
  "vit": dict.fromkeys(_VIT.split(), 224),
  "mixer": dict.fromkeys(_MIXER.split(), 224),
  "resnet": dict.fromkeys(_RESNET, 224),
  "bit": dict.fromkeys(_RESNET, 224),
  "nfnet": {name: variant.test_size for name, variant in NFNETS.items()},
}


def table(family: str) -> list[str]:
  """Returns the lines of the table for the models of a family with a head of 1000 classes, without the table's head."""
  lines = []
  for variant, size in VARIANTS[family].items():
    # Blocks under scan are traced once.
    options = {"scan": True} if family == "vit" else {}
    measured = measure(registry.get(family).Model(1000, variant=variant, **options), (1, size, size, 3))
    numbers = f"{measured.params / 1e6:,.1f} | {measured.multiply_adds / 1e9:,.2f}"
    lines.append(f"| {family} | {variant} | {size} | {numbers} |")
  return lines


# The same for text towers: how many tokens and which vocabularies they are measured with.
TEXT_VARIANTS: dict[str, list[tuple[str, int, int]]] = {
  "text_transformer": [("B", 64, 32_000), ("L", 64, 32_000), ("So400m", 64, 32_000), ("B", 64, 256_000)],
  "bert": [("base", 16, 30_522), ("large", 16, 30_522)],
}


def text_table(family: str) -> list[str]:
  """Returns the lines of the table for the text towers of a family without a head, without the table's head."""
  lines = []
  for variant, tokens, vocabulary in TEXT_VARIANTS[family]:
    model = registry.get(family).Model(variant=variant, vocab_size=vocabulary)
    measured = measure(model, (1, tokens), jnp.int32)
    numbers = f"{measured.params / 1e6:,.1f} | {measured.multiply_adds / 1e9:,.2f}"
    lines.append(f"| {family} | {variant} | {tokens} | {vocabulary:,} | {numbers} |")
  return lines


TEXT_HEAD = [
  "| `model_name` | variant | tokens | vocabulary | parameters (M) | multiply-adds (G) |",
  "|---|---|---:|---:|---:|---:|",
]
HEAD = ["| `model_name` | variant | pixels | parameters (M) | multiply-adds (G) |", "|---|---|---:|---:|---:|"]


if __name__ == "__main__":
  print(*TEXT_HEAD, *(line for family in TEXT_VARIANTS for line in text_table(family)), "", sep="\n")
  print(*HEAD, *(line for family in VARIANTS for line in table(family)), sep="\n")
