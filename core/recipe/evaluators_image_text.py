"""Recipes of the evaluators of models of images and texts, and the data sets of zero-shot classification by name."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from core.errors import nearest
from core.recipe.evaluators_base import Evaluation, ImageText, Key, NonEmpty, OneDataset, Several, TwoSided, as_tuple
from core.recipe.pp_string import PpString
from core.recipe.sources import Digits, Source, Tfds
from core.recipe.types import Count, Refused, Text

# A known set of class names, a file of them, or the list itself, in which a class has a name or several.
ClassNames = Text | Annotated[tuple[Text | Annotated[tuple[Text, ...], NonEmpty], ...], NonEmpty]
# A known set of templates, a file of them, one template, or the list itself.
Templates = Text | Annotated[tuple[Text, ...], NonEmpty]

IMAGE_TEXT = ImageText(image="image", text="text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(OneDataset, Evaluation):
  """Contrastive loss and accuracy of images with their texts.

  Attributes:
    pred: the prediction of the task that is evaluated. It gives (embeddings of images, embeddings of texts, out); of
      `out` the factor `t` on their inner products is read and, for the sigmoid loss, the bias `b`.
    pp_fn: the preprocessing of its examples. It leaves `image` and `labels`.
    batch_size: examples a step over all devices, which are compared with each other. None: as many as in training.
    loss_name: the loss that is reported, in nats an image. "softmax" (Radford et al. 2021): the mean of both
      directions; "sigmoid" (Zhai et al. 2023, section 3.2): summed over texts.
  """

  TITLE: ClassVar[str] = "the evaluator contrastive"

  pred: Text | dict[str, Text] = "contrastive"
  loss_name: Literal["softmax", "sigmoid"] = "softmax"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(TwoSided):
  """How often images and their captions find each other.

  Attributes:
    data: the dataset, every image of which is asked for.
    pp_img: the preprocessing from the data to `image`.
    pp_txt: the preprocessing from a caption under `text` (also there as `texts`) to `labels`.
    batch_size: images, and texts, a step over all devices. None: as many as in training.
    txt_name: where the captions of an example are. One key, or the parts of one; within dicts joined by `/`. None: the
      first that there is of `captions/text`, `captions`, `texts`, `caption`, `text`.
    captions_per_image: the most captions of an image that are asked for, the first ones. None: all.
    skip_empty: leaves out captions without a word, and images without a caption. Else they are refused. The metrics
      `skipped_captions` and `skipped_images` count them.
    same_text_counts: each image of those with word for word the same caption is a right answer to it. No benchmark
      counts so; it is for captions made from templates.
    k: how many of the best answers count, one number or several.
  """

  TITLE: ClassVar[str] = "the evaluator retrieval"

  pred: Literal["predict"] | ImageText = IMAGE_TEXT
  data: Source
  pp_img: PpString
  pp_txt: PpString
  txt_name: Text | Annotated[tuple[Text, ...], NonEmpty] | None = None
  captions_per_image: Count | None = None
  skip_empty: bool = False
  same_text_counts: bool = False
  k: Several[Count] = (1, 5, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroshotDataset:
  """A data set of zero-shot classification. What is None is that of the data set of this name, if it is a known one.

  Attributes:
    data: where it is.
    class_names: the names of its classes. One of the known sets, a file with a name a line or a JSON list, or the list
      itself; a class with several names is a list of them. None: those of the evaluator, or of the source.
    templates: the prompts that names are put into. A known set, a file, one template, or a list of templates; in each
      `{}` stands for the name. None: those of the evaluator.
    label_key: where the labels of an example are. None: `label`.
    several_labels: an example has any number of labels, and the prediction is right if it is one of them. None: False.
    pp_img: the preprocessing of its images. None: that of the evaluator.
    pp_txt: the preprocessing of its texts. None: that of the evaluator.
  """

  TITLE: ClassVar[str] = "a data set"

  data: Source | None = None
  class_names: ClassNames | None = None
  templates: Templates | None = None
  label_key: Key | None = None
  several_labels: bool | None = None
  pp_img: PpString | None = None
  pp_txt: PpString | None = None

  def over(self, other: "ZeroshotDataset") -> "ZeroshotDataset":
    """Returns `other`, changed by all that is not None here."""
    return dataclasses.replace(other, **{key: value for key, value in vars(self).items() if value is not None})


def _known(name: str, split: str, class_names: str, templates: str, **options: Any) -> ZeroshotDataset:
  """Returns a data set as TFDS has it, or the digits that scikit-learn brings."""
  source = Digits if name == "digits" else Tfds
  return ZeroshotDataset(data=source(name=name, split=split), class_names=class_names, templates=templates, **options)


# The data sets that are known by name.
DATASETS: dict[str, ZeroshotDataset] = {
  "imagenet2012": _known("imagenet2012", "validation", "imagenet", "imagenet_best"),
  "imagenet_v2": _known("imagenet_v2", "test", "imagenet", "imagenet_best"),
  # Beyer et al. 2020: any number of labels an image; those without one do not count.
  "imagenet2012_real": _known(
    "imagenet2012_real", "validation", "imagenet", "imagenet_best", label_key="real_label", several_labels=True
  ),
  "imagenet_sketch": _known("imagenet_sketch", "test", "imagenet", "imagenet_best"),
  "cifar10": _known("cifar10", "test", "cifar10", "cifar"),
  "cifar100": _known("cifar100", "test", "cifar100", "cifar"),
  "oxford_iiit_pet": _known("oxford_iiit_pet", "test", "oxford_iiit_pet", "oxford_iiit_pet"),
  "oxford_flowers102": _known("oxford_flowers102", "test", "oxford_flowers102", "oxford_flowers102"),
  "food101": _known("food101", "validation", "food101", "food101"),
  "dtd": _known("dtd", "test", "dtd", "dtd"),
  "cars196": _known("cars196", "test", "cars196", "cars196"),
  "mnist": _known("mnist", "test", "digits", "digits"),
  "svhn_cropped": _known("svhn_cropped", "test", "digits", "digits"),
  "digits": _known("digits", "test", "digits", "digits"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeroshot(TwoSided):
  """Zero-shot classification by the texts of class names.

  Attributes:
    pp_img: the preprocessing from the data to the `image` of the model. Labels are kept beside it.
    pp_txt: the preprocessing from `text` (also there as `texts`) to `labels`. It tokenizes, or renders to an image.
    batch_size: examples, and texts, a step over all devices. The last batch is padded. None: as many as in training.
    dataset_names: the data sets, one or several of the known ones.
    datasets: data sets by a name of yours, or under the name of a known one what is changed of it.
    class_names: the names of classes of all data sets, in place of their own. See `datasets`.
    templates: the prompts of all data sets, in place of their own. See `datasets`.
    canonicalize: makes prompts lower-case and drops their punctuation, as SigLIP was trained.
    first_class_name_only: takes the first name of a class that has several.
  """

  TITLE: ClassVar[str] = "the evaluator zeroshot"

  pred: Literal["predict"] | ImageText = IMAGE_TEXT
  pp_img: PpString
  pp_txt: PpString
  dataset_names: Text | tuple[Text, ...] = ()
  datasets: dict[str, ZeroshotDataset] = dataclasses.field(default_factory=dict)
  class_names: ClassNames | None = None
  templates: Templates | None = None
  canonicalize: bool = True
  first_class_name_only: bool = False

  def __post_init__(self):
    super().__post_init__()
    for name in as_tuple(self.dataset_names):
      if name not in DATASETS and name not in self.datasets:
        raise Refused(f"names no data set {name!r}{nearest(name, DATASETS)}", key="dataset_names")
    if not self.dataset_names and not self.datasets:
      raise Refused(f"must name a data set where datasets has none{nearest('', DATASETS)}", key="dataset_names")
    for name, dataset in self.datasets.items():
      if name not in DATASETS and dataset.data is None:
        raise Refused("is missing; it is where the data set is (a dict)", key=f"datasets.{name}.data")
    for key in ("class_names", "templates"):
      own = [name for name, dataset in self.datasets.items() if getattr(dataset, key) is not None]
      if getattr(self, key) is not None and set(own) >= {*as_tuple(self.dataset_names), *self.datasets}:
        raise Refused("is of no effect: every data set of datasets has its own", key=key)

  def sets(self) -> dict[str, ZeroshotDataset]:
    """Returns the data sets by name, those of `dataset_names` first; only `class_names` and `templates` may be None."""
    every = ZeroshotDataset(class_names=self.class_names, templates=self.templates)
    default = ZeroshotDataset(label_key="label", several_labels=False, pp_img=self.pp_img, pp_txt=self.pp_txt)
    found = {}
    for name in dict.fromkeys([*as_tuple(self.dataset_names), *self.datasets]):
      known = DATASETS.get(name, ZeroshotDataset()).over(default)
      found[name] = self.datasets.get(name, ZeroshotDataset()).over(every.over(known))
    return found
