"""One tower for images and for texts that are rendered to images: CLIPPO (Tschannen et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from core.errors import UserError
from core.models import tower_files, towers, vit
from core.models.layers import Intermediates
from core.models.two_towers import embed, make_tower, refuse_classes, scalar
from core.recipe.models.load import EVERYTHING, Load
from core.recipe.models.towers import OneTower as Options
from core.recipe.parse import parse


def Model(num_classes: None = None, **kw: Any) -> "OneTower":
  """Returns the tower of `kw`, which are `Options`: `image=dict(variant="B/16"), out_dim=768`.

  Raises:
    UserError: an unknown model or option, or a value that none can have.
  """
  return make(num_classes, parse(Options, kw, "model"))


def make(num_classes: None, options: Options) -> "OneTower":
  """Returns the tower of these options.

  Raises:
    UserError: a number of classes, which such a model has none of.
  """
  refuse_classes(num_classes)
  return OneTower(make_tower(options.image, options.out_dim), options)


class OneTower(nn.Module):
  """Made by `Model` or `make`.

  Attributes:
    img: the tower, a module that maps images to (outputs, intermediates).
    options: of the model.
  """

  img: nn.Module
  options: Options

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
      raise UserError(f"one_tower takes texts rendered to images [batch, height, width, 3], got {list(text.shape)}")
    zimg = None if image is None else embed(self.img, "img", image, out, train=train)
    ztxt = None if text is None else embed(self.img, "txt", text, out, train=train)
    scalar(self, out, self.options.temperature_init, self.options.bias_init)
    return zimg, ztxt, out


def load(
  init_params: Any,
  init_file: str | Mapping[str, str],
  options: Options | None = None,
  dont_load: Sequence[str] = (),
  img_load_kw: Load = EVERYTHING,
) -> Any:
  """Returns published weights, fitted to `init_params`; see `core.models.two_towers.load`.

  Args:
    init_params: the fresh parameters, arrays or `jax.ShapeDtypeStruct`s.
    init_file: a file of CLIPPO (a name like "yfcc100m_i21k_init", a path or a URL), or a dict of files by `image`, `t`
      and `b`: `dict(image="howto-i21k-B/16")` to start from a classifier, with `img_load_kw`.
    options: of the model; None for a ViT.
    dont_load: regexes over names ("img/head/.*", "t") of what keeps its value of `init_params`.
    img_load_kw: of the tower's own `load`, `Load(dont_load=("head/.*",))` for one.

  Raises:
    UserError: an unreadable file, or one of another tower.
  """
  tower = tower_files.Tower(vit.load, None, img_load_kw)
  if options is not None:
    tower = tower_files.Tower(towers.of(options.image).load, options.image, img_load_kw)
  return tower_files.load("one_tower", init_params, init_file, {"img": tower}, dont_load)
