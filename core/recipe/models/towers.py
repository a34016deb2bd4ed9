"""The options of models of images and texts: LiT and SigLIP's two towers, and CLIPPO's one (Tschannen et al. 2023)."""

import dataclasses
from typing import Annotated, Any, ClassVar

from core.recipe.models.bert import Bert
from core.recipe.models.mixer import Mixer
from core.recipe.models.nfnet import NFNet
from core.recipe.models.options import ModelOptions
from core.recipe.models.resnet import BiT, ResNet
from core.recipe.models.text_transformer import TextTransformer
from core.recipe.models.vit import ViT
from core.recipe.types import Check, Count, Number, OneOf, Positive, Refused

IMAGE_MODELS: dict[str, type] = {
  "vit": ViT,
  "mixer": Mixer,
  "resnet": ResNet,
  "bit_paper": ResNet,  # The name in published configs.
  "bit": BiT,
  "nfnet": NFNet,
}
TEXT_MODELS: dict[str, type] = {
  "text_transformer": TextTransformer,
  "proj.image_text.text_transformer": TextTransformer,  # Here and below: names in published configs.
  "bert": Bert,
  "proj.flaxformer.bert": Bert,
}


def _of_both(size: Any) -> tuple[int | None, int | None]:
  return size if isinstance(size, tuple) else (size, size)


EmbeddingSizes = Annotated[
  Count | tuple[Count | None, Count | None] | None,
  Check("the size of the embedding, or (image, text) with None for a tower without a head", _of_both),
]


def _with_directions(tower: Any, size: int | None, key: str) -> Any:
  """Returns a tower's options; its head starts with random weights, for zeros have no direction.

  Raises:
    Refused: the config states a head of zeros.
  """
  if not size or not tower.head_zeroinit:
    return tower
  if "head_zeroinit" in tower.stated:
    raise Refused("must not be True: embeddings of zeros have no direction", key=f"{key}.head_zeroinit")
  return dataclasses.replace(tower, head_zeroinit=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneTower(ModelOptions):
  """One tower for images and for texts that are rendered to images.

  Attributes:
    image_model: the model that the tower is.
    image: options of that model. Its head starts with random weights.
    out_dim: size of the embedding; None leaves the head away, and the tower's representation is the embedding.
    temperature_init: what the cosine similarity is multiplied with at first. Its logarithm is learned.
    bias_init: what is added to it at first. None for a model without a bias, one that a softmax is to train.
  """

  TITLE: ClassVar[str] = "the model one_tower"

  image_model: str = "vit"
  image: Annotated[Any, OneOf("image_model", IMAGE_MODELS, beside=True)]
  out_dim: Count | None = 128
  temperature_init: Positive = 1.0
  bias_init: Number | None = None

  def __post_init__(self) -> None:
    object.__setattr__(self, "image", _with_directions(self.image, self.out_dim, "image"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTowers(ModelOptions):
  """Two towers, an image's and a text's, that embed into one space.

  Attributes:
    image_model: the model that the image tower is.
    text_model: the model that the text tower is.
    image: options of the image tower. Its head starts with random weights.
    text: options of the text tower. Its head starts with random weights.
    out_dim: size of the embedding, one number or (image, text). None leaves the head of that tower away, and its
      representation is the embedding.
    temperature_init: what the cosine similarity is multiplied with at first. Its logarithm is learned.
    bias_init: what is added to it at first. None for a model without a bias, one that a softmax is to train.
  """

  TITLE: ClassVar[str] = "the model two_towers"

  image_model: str = "vit"
  text_model: str = "text_transformer"
  image: Annotated[Any, OneOf("image_model", IMAGE_MODELS, beside=True)]
  text: Annotated[Any, OneOf("text_model", TEXT_MODELS, beside=True)]
  out_dim: EmbeddingSizes = (128, 128)
  temperature_init: Positive = 1.0
  bias_init: Number | None = None

  def __post_init__(self) -> None:
    of_image, of_text = self.out_dim
    if None not in self.out_dim and of_image != of_text:
      raise Refused(f"must be of one size for images and texts, got {self.out_dim}", key="out_dim")
    object.__setattr__(self, "image", _with_directions(self.image, of_image, "image"))
    object.__setattr__(self, "text", _with_directions(self.text, of_text, "text"))
