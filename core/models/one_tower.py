"""One tower for images and for texts that are rendered to images: CLIPPO (Tschannen et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from core.errors import UserError
from core.models import tower_files, towers
from core.models.layers import Intermediates
from core.models.two_towers import check_scalars, embed, make_tower, scalar


def Model(
  *,
  image: Mapping[str, Any] | None = None,
  image_model: str = "vit",
  out_dim: int | None = 128,
  temperature_init: float = 1.0,
  bias_init: float | None = None,
) -> "OneTower":
  """One tower of these options; see `core.models.two_towers.Model`.

  Raises:
    UserError: an unknown model or option, or a value that none can have.
  """
  check_scalars(temperature_init, bias_init)
  if out_dim is not None and (not isinstance(out_dim, int) or isinstance(out_dim, bool) or out_dim < 1):
    raise UserError(
      f"config.model.out_dim must be the size of the embedding, or None for the tower's representation; got {out_dim!r}"
    )
  return OneTower(
    img=make_tower("image", image_model, image, out_dim),
    temperature_init=float(temperature_init),
    bias_init=None if bias_init is None else float(bias_init),
  )


class OneTower(nn.Module):
  """Made by `Model`, which checks the options.

  Attributes:
    img: the tower, a module that maps images to (outputs, intermediates).
    temperature_init, bias_init: see `core.models.two_towers.Model`.
  """

  img: nn.Module
  temperature_init: float = 1.0
  bias_init: float | None = None

  @nn.compact
  def __call__(
    self,
    image: Float[Array, "batch height width 3"] | None = None,
    text: Float[Array, "texts height width 3"] | None = None,
    *,
    train: bool = False,
  ) -> tuple[Float[Array, "batch dim"] | None, Float[Array, "texts dim"] | None, Intermediates]:
    """Embeds images, rendered texts, or both, by the same weights; as `core.models.two_towers.TwoTowers` does.

    Both have values in [-1, 1]. The intermediates of texts are under "txt/...".

    Raises:
      UserError: an input that the tower does not take.
    """
    out: Intermediates = {}
    if text is not None and text.ndim != 4:
      raise UserError(
        f"model: one_tower takes texts rendered to images [batch, height, width, 3], got {list(text.shape)}"
      )
    zimg = None if image is None else embed(self.img, "img", image, out, train=train)
    ztxt = None if text is None else embed(self.img, "txt", text, out, train=train)
    scalar(self, out, self.temperature_init, self.bias_init)
    return zimg, ztxt, out


def load(
  init_params: Any,
  init_file: str | Mapping[str, str],
  model_cfg: Mapping[str, Any] | None = None,
  dont_load: Sequence[str] = (),
  img_load_kw: Mapping[str, Any] | None = None,
) -> Any:
  """Published weights, fitted to `init_params`; see `core.models.two_towers.load`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a file of CLIPPO (a name like "yfcc100m_i21k_init", a path or a URL), or a dict of files by `image`, `t`
      and `b`: `dict(image="howto-i21k-B/16")` to start from a classifier, with `img_load_kw`.
    model_cfg: the model's options.
    dont_load: regexes over names ("img/head/.*", "t") of what keeps its value of `init_params`.
    img_load_kw: of the tower's own `load`, `dict(dont_load=["head/.*"])` for one.

  Raises:
    UserError: an unreadable file, or one of another tower.
  """
  model_cfg = model_cfg or {}
  loaders = {"img": towers.get("image", model_cfg.get("image_model", "vit")).load}
  configs = {"img": dict(model_cfg.get("image") or {})}
  return tower_files.load(
    "one_tower", init_params, init_file, loaders, configs, dont_load, {"img": dict(img_load_kw or {})}
  )
