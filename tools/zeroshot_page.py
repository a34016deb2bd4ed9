"""A page of images against prompts: one HTML file that holds all it shows, and needs no server and no network."""

import base64
import dataclasses
import io
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from core import data_files

_TEMPLATE = data_files.find("tools/zeroshot_page.html")
_PLACE = "__DATA__"


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image on the page.

  Attributes:
    name: what to call it.
    source: a `data:` URL.
    width: in pixels.
    height: in pixels.
  """

  name: str
  source: str
  width: int
  height: int

  @classmethod
  def of_pixels(cls, name: str, pixels: UInt8[np.ndarray, "height width channels"], size: int) -> "Picture":
    """Returns the picture of an image, made smaller where its longer side is above `size` pixels."""
    from PIL import Image

    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    image.thumbnail((size, size))
    out = io.BytesIO()
    # Of small pictures every pixel counts.
    kind, options = ("png", {}) if max(image.size) <= 64 else ("jpeg", {"quality": 85})
    image.save(out, kind, **options)
    source = f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
    return cls(name, source, *image.size)


def write(
  pictures: Sequence[Picture],
  *,
  model: str,
  labels: Sequence[str],
  templates: Sequence[str],
  by_itself: bool,
  probability: Sequence[Sequence[float]],
  similarity: Sequence[Sequence[float]],
) -> str:
  """Returns the page's HTML.

  Args:
    pictures: the images, in the order in which they stand at first.
    model: what the scores are by, in words.
    labels: what the images may be.
    templates: what the labels were put into.
    by_itself: each probability is of its label alone (sigmoid); else those of an image sum to 1 (softmax).
    probability: an image a row, a label a column, in [0, 1].
    similarity: the same of cosine similarities.
  """
  data = {
    "model": model,
    "labels": list(labels),
    "templates": list(templates),
    "byItself": by_itself,
    "images": [dataclasses.asdict(each) for each in pictures],
    "scores": {"probability": probability, "similarity": similarity},
  }
  # Within a script element, only `</script` and `<!--` end it or change how it is read.
  return _TEMPLATE.read_text("utf-8").replace(_PLACE, json.dumps(data, ensure_ascii=True).replace("<", "\\u003c"))
