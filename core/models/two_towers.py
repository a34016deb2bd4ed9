"""Two towers, an image's and a text's, that embed into one space: LiT (Zhai et al. 2022), SigLIP (Zhai et al. 2023)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from core.errors import UserError
from core.models import tower_files, towers
from core.models.layers import Intermediates

KINDS = {"img": "image", "txt": "text"}


def Model(
  *,
  image: Mapping[str, Any] | None = None,
  text: Mapping[str, Any] | None = None,
  image_model: str = "vit",
  text_model: str = "text_transformer",
  out_dim: int | Sequence[int | None] = (128, 128),
  temperature_init: float = 1.0,
  bias_init: float | None = None,
) -> "TwoTowers":
  """Two towers of these options.

  Args:
    image, text: options of the towers' own models.
    image_model, text_model: which these are, see `core.models.towers`.
    out_dim: size of the embedding, one number or (image, text); None leaves the head of that tower away, and its
      representation is the embedding.
    temperature_init: what the cosine similarity is multiplied with at first; its logarithm is learned.
    bias_init: what is added to it at first; None for a model without a bias, one that a softmax is to train.

  Raises:
    UserError: an unknown model or option, or a value that none can have.
  """
  check_scalars(temperature_init, bias_init)
  of_image, of_text = _pair(out_dim)
  return TwoTowers(
    img=make_tower("image", image_model, image, of_image),
    txt=make_tower("text", text_model, text, of_text),
    temperature_init=float(temperature_init),
    bias_init=None if bias_init is None else float(bias_init),
  )


def make_tower(kind: str, name: str, options: Mapping[str, Any] | None, out_dim: int | None) -> nn.Module:
  """The tower `name` of a kind of input, "image" or "text", with a head of `out_dim` outputs unless it states others.

  Its head starts with random weights rather than zeros, as those of classifiers do: zeros have no direction.

  Raises:
    UserError: an unknown model or option, or a head of zeros.
  """
  family, options = towers.get(kind, name), dict(options or {})
  try:
    model = family.Model(**{"num_classes": out_dim, **options})
  except UserError as error:
    raise UserError(f"config.model.{kind}: {error}") from None
  if not hasattr(model, "head_zeroinit") or not model.num_classes:
    return model
  if options.get("head_zeroinit"):
    raise UserError(f"config.model.{kind}.head_zeroinit=True: embeddings of zeros have no direction; leave it False")
  return model.clone(head_zeroinit=False)


def check_scalars(temperature_init: Any, bias_init: Any) -> None:
  """Refuses initial temperatures and biases that are none.

  Raises:
    UserError: says which.
  """
  is_number = lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  if not is_number(temperature_init) or temperature_init <= 0:
    raise UserError(
      f"config.model.temperature_init must be a number above 0 (its logarithm is learned), got {temperature_init!r}"
    )
  if bias_init is not None and not is_number(bias_init):
    raise UserError(f"config.model.bias_init must be a number or None, got {bias_init!r}")


def _pair(out_dim: Any) -> tuple[int | None, int | None]:
  pair = tuple(out_dim) if isinstance(out_dim, Sequence) and not isinstance(out_dim, str) else (out_dim, out_dim)
  is_size = lambda size: size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0)
  if len(pair) != 2 or not all(map(is_size, pair)) or (None not in pair and pair[0] != pair[1]):
    raise UserError(
      "config.model.out_dim must be the size of the embedding, or (image, text) of one size, with None for a tower "
      f"whose representation is the embedding; got {out_dim!r}"
    )
  return pair


class TwoTowers(nn.Module):
  """Made by `Model`, which checks the options.

  Attributes:
    img, txt: the towers, modules that map their input to (outputs, intermediates).
    temperature_init, bias_init: see `Model`.
  """

  img: nn.Module
  txt: nn.Module
  temperature_init: float = 1.0
  bias_init: float | None = None

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
    scalar(self, out, self.temperature_init, self.bias_init)
    return zimg, ztxt, out


def embed(
  tower: Callable[..., tuple[jax.Array, Intermediates]],
  name: str,
  inputs: jax.Array,
  out: Intermediates,
  *,
  train: bool,
) -> Float[Array, "batch dim"]:
  """Embeddings of length 1; adds a tower's intermediates to `out` under `name`.

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
  """Vectors of length 1 in float32, and the lengths they had; zero stays zero."""
  z = z.astype(jnp.float32)
  norm = jnp.linalg.norm(z, axis=1, keepdims=True)
  return z / (norm + 1e-8), norm


def scalar(module: nn.Module, out: Intermediates, temperature_init: float, bias_init: float | None) -> None:
  """Adds the parameters `t`, the logarithm of the temperature, and `b` to `module`, and their values to `out`."""
  constant = lambda value: lambda key: jnp.full((1,), value, jnp.float32)
  t = out["t/parameter"] = module.param("t", constant(math.log(temperature_init)))
  out["t"] = jnp.exp(t)
  if bias_init is not None:
    out["b"] = module.param("b", constant(bias_init))


def load(
  init_params: Any,
  init_file: str | Mapping[str, str],
  model_cfg: Mapping[str, Any] | None = None,
  dont_load: Sequence[str] = (),
  img_load_kw: Mapping[str, Any] | None = None,
  txt_load_kw: Mapping[str, Any] | None = None,
) -> Any:
  """Published weights, fitted to `init_params`: of both towers from one file, or of each from a file of its own.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a file of two towers (a name like "SigLIP B/16 224" or "mixed_B16B", a path or a URL), which holds `t`,
      and `b` if the model has a bias; or a dict of files by `image`, `text`, `t` and `b` (also `img`, `txt`,
      `temperature` and `bias`). What the dict leaves out keeps its value of `init_params`.
    model_cfg: the model's options.
    dont_load: regexes over names ("txt/head/.*", "b") of what keeps its value of `init_params`.
    img_load_kw, txt_load_kw: of the towers' own `load`, `dict(dont_load=["head/.*"])` for one.

  Raises:
    UserError: an unreadable file, or one of other towers.
  """
  model_cfg = model_cfg or {}
  load_kw = {"img": dict(img_load_kw or {}), "txt": dict(txt_load_kw or {})}
  names = {"img": model_cfg.get("image_model", "vit"), "txt": model_cfg.get("text_model", "text_transformer")}
  loaders = {tower: towers.get(KINDS[tower], name).load for tower, name in names.items()}
  configs = {tower: dict(model_cfg.get(kind) or {}) for tower, kind in KINDS.items()}
  return tower_files.load("two_towers", init_params, init_file, loaders, configs, dont_load, load_kw)
