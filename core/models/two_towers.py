"""Two towers, an image's and a text's, that embed into one space: LiT (Zhai et al. 2022), SigLIP (Zhai et al. 2023)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from core.errors import UserError
from core.models import text_transformer, tower_files, towers, vit
from core.models.layers import Intermediates
from core.recipe.models.load import EVERYTHING, Load
from core.recipe.models.options import ModelOptions
from core.recipe.models.towers import TwoTowers as Options
from core.recipe.parse import parse

KINDS = {"img": "image", "txt": "text"}


def Model(num_classes: None = None, **kw: Any) -> "TwoTowers":
  """Returns the two towers of `kw`, which are `Options`: `image=dict(variant="B/16"), out_dim=(None, 768)`.

  Raises:
    UserError: an unknown model or option, or a value that none can have.
  """
  return make(num_classes, parse(Options, kw, "model"))


def make(num_classes: None, options: Options) -> "TwoTowers":
  """Returns the two towers of these options.

  Raises:
    UserError: a number of classes, which such a model has none of.
  """
  refuse_classes(num_classes)
  of_image, of_text = options.out_dim
  return TwoTowers(make_tower(options.image, of_image), make_tower(options.text, of_text), options)


def make_tower(options: ModelOptions, out_dim: int | None) -> nn.Module:
  """Returns the tower of these options, with a head of `out_dim` outputs."""
  return towers.of(options).make(out_dim, options)


def refuse_classes(num_classes: Any) -> None:
  """Refuses a number of classes for a model that embeds.

  Raises:
    UserError: there is one.
  """
  if num_classes is not None:
    raise UserError(f"num_classes: a model of images and texts has no classes, got {num_classes!r}; set model.out_dim")


class TwoTowers(nn.Module):
  """Made by `Model` or `make`.

  Attributes:
    img: the image tower, a module that maps images to (outputs, intermediates).
    txt: the text tower, which does so with texts.
    options: of the model.
  """

  img: nn.Module
  txt: nn.Module
  options: Options

  @nn.compact
  def __call__(
    self,
    image: Float[Array, "batch height width 3"] | None = None,
    text: Int[Array, "texts tokens"] | None = None,
    *,
    train: bool = False,
  ) -> tuple[Float[Array, "batch dim"] | None, Float[Array, "texts dim"] | None, Intermediates]:
    """Embeds images, texts, or both; what is not given is not computed, and its embedding is None.

    Embeddings have length 1 and are float32. Images have values in [-1, 1]. The intermediates: "t" the temperature,
    "t/parameter" its logarithm, "b" the bias of a model that has one; "img/norm" and "img/normalized", the embeddings
    before and after normalization, and the towers' own under "img/..." and "txt/...".

    Raises:
      UserError: an input that its tower does not take, or embeddings of different sizes.
    """
    out: Intermediates = {}
    zimg = None if image is None else embed(self.img, "img", image, out, train=train)
    ztxt = None if text is None else embed(self.txt, "txt", text, out, train=train)
    if zimg is not None and ztxt is not None and zimg.shape[-1] != ztxt.shape[-1]:
      raise UserError(
        f"config.model.out_dim: the image tower gives {zimg.shape[-1]} numbers, and the text tower {ztxt.shape[-1]}"
      )
    scalar(self, out, self.options.temperature_init, self.options.bias_init)
    return zimg, ztxt, out


def embed(
  tower: Callable[..., tuple[Float[Array, "batch dim"], Intermediates]],
  name: str,
  inputs: Shaped[Array, "batch ..."],
  out: Intermediates,
  *,
  train: bool,
) -> Float[Array, "batch dim"]:
  """Returns embeddings of length 1; adds a tower's intermediates to `out` under `name`.

  Raises:
    UserError: the tower's outputs are not one vector an example.
  """
  z, of_tower = tower(inputs, train=train)
  if z.ndim != 2:
    raise UserError(f"config.model.{KINDS[name]}: gives {list(z.shape[1:])} numbers an example; choose a pool_type")
  out.update({f"{name}/{key}": value for key, value in of_tower.items()})
  out[f"{name}/normalized"], out[f"{name}/norm"] = unit_length(z)
  return out[f"{name}/normalized"]


def unit_length(z: Float[Array, "batch dim"]) -> tuple[Float[Array, "batch dim"], Float[Array, "batch 1"]]:
  """Returns vectors of length 1 in float32, and the lengths they had; zero stays zero."""
  z = z.astype(jnp.float32)
  norm = jnp.linalg.norm(z, axis=1, keepdims=True)
  return z / (norm + 1e-8), norm


def scalar(module: nn.Module, out: Intermediates, temperature_init: float, bias_init: float | None) -> None:
  """Adds the parameters `t`, the logarithm of the temperature, and `b` to `module`, and their values to `out`."""
  t = out["t/parameter"] = module.param("t", nn.initializers.constant(math.log(temperature_init)), (1,), jnp.float32)
  out["t"] = jnp.exp(t)
  if bias_init is not None:
    out["b"] = module.param("b", nn.initializers.constant(bias_init), (1,), jnp.float32)


def load(
  init_params: Any,
  init_file: str | Mapping[str, str],
  options: Options | None = None,
  dont_load: Sequence[str] = (),
  img_load_kw: Load = EVERYTHING,
  txt_load_kw: Load = EVERYTHING,
) -> Any:
  """Returns published weights, fitted to `init_params`: of both towers from one file, or of each from its own.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a file of two towers (a name like "SigLIP B/16 224" or "mixed_B16B", a path or a URL), which holds `t`,
      and `b` if the model has a bias; or a dict of files by `image`, `text`, `t` and `b` (also `img`, `txt`,
      `temperature` and `bias`). What the dict leaves out keeps its value of `init_params`.
    options: of the model; None for a ViT and a text transformer.
    dont_load: regexes over names ("txt/head/.*", "b") of what keeps its value of `init_params`.
    img_load_kw: of the image tower's own `load`, `Load(dont_load=("head/.*",))` for one.
    txt_load_kw: of the text tower's own `load`.

  Raises:
    UserError: an unreadable file, or one of other towers.
  """
  parts = {
    "img": tower_files.Tower(vit.load, None, img_load_kw),
    "txt": tower_files.Tower(text_transformer.load, None, txt_load_kw),
  }
  if options is not None:
    parts["img"] = tower_files.Tower(towers.of(options.image).load, options.image, img_load_kw)
    parts["txt"] = tower_files.Tower(towers.of(options.text).load, options.text, txt_load_kw)
  return tower_files.load("two_towers", init_params, init_file, parts, dont_load)
