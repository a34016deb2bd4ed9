"""timm's `config.json`: what `timm.create_model("local-dir:FOLDER")` builds a model from."""

from typing import Any


def make(
  architecture: str, model: Any, image_size: tuple[int, int], *, features: int, first: str, head: str, **model_args: Any
) -> dict[str, Any]:
  """Returns the contents of the file for one of our models, whose images have values in [-1, 1].

  Args:
    architecture: a name that timm registers.
    model: of which `num_classes` is read.
    image_size: (height, width) in pixels.
    features: width of what the head reads.
    first, head: timm's names of the first layer and of the head.
    model_args: arguments that make the architecture this model.
  """
  num_classes = model.num_classes or 0
  pretrained_cfg = {
    "num_classes": num_classes,
    "input_size": [3, *image_size],
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "first_conv": first,
    "classifier": head,
  }
  return {
    "architecture": architecture,
    "num_classes": num_classes,
    "num_features": features,
    "model_args": {"num_classes": num_classes, **model_args},
    "pretrained_cfg": pretrained_cfg,
  }
