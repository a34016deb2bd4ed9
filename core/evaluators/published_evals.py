"""Evaluations that many papers report, as entries of a config's `evals`: ImageNet, few-shot transfer, images and texts.

    config.evals = published_evals.imagenet("decode|resize(224)|value_range(-1,1)", batch_size=512, log_steps=1_000)

The datasets must be prepared, or left out by `tests` and `datasets`, which a config hands on as arguments of its own.
"""

from typing import Any

from core import config as config_lib
from core.recipe.evaluators_image_text import DATASETS

# A test of a classifier of ImageNet-1k: its dataset, split, and key of the label or labels. ReaL (Beyer et al. 2020,
# "Are we done with ImageNet?", 2006.07159) has any number of labels an image; those without one do not count. v2 is a
# second test set (Recht et al. 2019, 1902.10811).
IMAGENET = {
  "val": ("imagenet2012", "validation", "label"),
  "real": ("imagenet2012_real", "validation", "real_label"),
  "v2": ("imagenet_v2", "test", "label"),
}
_VAL_OF_REAL = ("imagenet2012_real", "validation", "original_label")

# A dataset of few-shot transfer: its name, train split and test split. 65,000 images are enough for 10 of each class.
FEWSHOT = {
  "imagenet": ("imagenet2012", "train[:65000]", "validation"),
  "caltech": ("caltech101", "train", "test"),
  "cars": ("cars196", "train", "test"),
  "cifar100": ("cifar100", "train", "test"),
  "dtd": ("dtd", "train", "test"),
  "pets": ("oxford_iiit_pet", "train", "test"),
  "uc_merced": ("uc_merced", "train[:1000]", "train[1000:]"),
}


def imagenet(pp: str, *, tests: str = "val+real+v2", alone: bool = False, **options: Any) -> dict[str, dict[str, Any]]:
  """Returns the tests of a classifier of ImageNet-1k, a new dict each: `{"val": {...}, "real": {...}, "v2": {...}}`.

  Args:
    pp: what is done to an image, from `decode` to `value_range`; what is done to the labels follows here.
    tests: names joined by `+`: val (the validation set with its labels of 2012), real, v2.
    alone: take the images and labels of `val` from ReaL's dataset, which does without the training images.
    **options: of the classification evaluator and when it runs: batch_size, log_steps, ...

  Raises:
    UserError: an unknown test.
  """

  def entry(test: str) -> dict[str, Any]:
    name, split, key = config_lib.choose("tests", test, IMAGENET | ({"val": _VAL_OF_REAL} if alone else {}))
    labels = f"onehot(1000,key='{key}',key_result='labels')|keep('image','labels')"
    return dict(type="classification", data=dict(name=name, split=split), pp_fn=f"{pp}|{labels}", **options)

  return {test: entry(test) for test in tests.split("+")}


def fewshot(datasets: str, *, resize: int = 256, crop: int = 224, **options: Any) -> dict[str, dict[str, Any]]:
  """Returns few-shot accuracies on the published datasets, `{"fewshot": {...}}`; none for `datasets="none"`.

  Args:
    datasets: names joined by `+`: imagenet, caltech, cars, cifar100, dtd, pets, uc_merced; or all, or none.
    resize: size in pixels to which images are resized, whatever their aspect.
    crop: the size of the crop in the middle that the model sees.
    **options: of the few-shot evaluator and when it runs: batch_size, log_steps, ...

  Raises:
    UserError: an unknown dataset.
  """
  if datasets == "none":
    return {}

  def pair(dataset: str) -> dict[str, dict[str, str]]:
    name, train, test = config_lib.choose("fewshot", dataset, FEWSHOT)
    return dict(train=dict(name=name, split=train), test=dict(name=name, split=test))

  pp = f"decode|resize({resize})|central_crop({crop})|value_range(-1,1)|keep('image','label')"
  entry = dict(
    type="fewshot",
    datasets={dataset: pair(dataset) for dataset in (FEWSHOT if datasets == "all" else datasets.split("+"))},
    pp_train=pp,
    pp_eval=pp,
    display_first=[("imagenet", 10)],
    **options,
  )
  return {"fewshot": entry}


def image_text(pp_img: str, pp_txt: str, *, tests: str, **options: Any) -> dict[str, dict[str, Any]]:
  """Returns zero-shot classification and retrieval, `{"zeroshot": {...}, "coco": {...}}`; none for `tests="none"`.

  COCO's are the 5,000 images, with five captions each, on which retrieval is reported (Karpathy & Fei-Fei 2015).

  Args:
    pp_img: what is done to an image, from `decode` to `value_range`.
    pp_txt: what makes `labels` of `text`.
    tests: names joined by `+`: `coco`, and data sets of `core.recipe.evaluators_image_text.DATASETS`; or none.
    **options: of both evaluators and when they run: batch_size, log_steps, ...

  Raises:
    UserError: an unknown test.
  """
  if tests == "none":
    return {}
  known = {"coco": "coco", **dict.fromkeys(DATASETS)}
  names = [name for name in tests.split("+") if config_lib.choose("tests", name, known) is None]
  options = dict(pp_img=pp_img, pp_txt=pp_txt, **options)
  entries = {"zeroshot": dict(type="zeroshot", dataset_names=names, **options)} if names else {}
  if "coco" in tests.split("+"):
    data = dict(name="coco_captions", split="test")
    entries["coco"] = dict(type="retrieval", data=data, captions_per_image=5, **options)
  return entries
