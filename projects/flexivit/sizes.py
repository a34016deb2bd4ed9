"""The sequence lengths of the paper's models, for the configs."""

from collections.abc import Mapping
from typing import Any

from core.errors import UserError

IMAGE = 240
# Patches of 48, 40, 30, 24, 20, 16, 15, 12, 10 and 8 px.
SEQHW = (5, 6, 8, 10, 12, 15, 16, 20, 24, 30)


def flexi(*, runlocal: bool) -> dict[str, Any]:
  """Returns a config's `flexi`: all of the paper's sizes, equally often; two that divide 32 px for `runlocal`."""
  sizes = (2, 4) if runlocal else SEQHW
  return dict(seqhw=dict(v=sizes, p=(1,) * len(sizes)))


def predictions(flexi: Mapping[str, Any], name: str) -> dict[str, str]:
  """Returns an evaluator's `pred` for every size: `{"8": "predict_8"}`, where metrics are called `val/8/prec@1`."""
  return {str(size): f"{name}_{size}" for size in flexi["seqhw"]["v"]}


def check_fixed(patch_size: int, image: int = IMAGE, seqhw: tuple[int, ...] = SEQHW) -> None:
  """Refuses a config's argument `fixed` that is none of the patch sizes.

  Raises:
    UserError: it lists them.
  """
  known = [image // size for size in seqhw]
  if patch_size not in known:
    raise UserError(f"config argument fixed={patch_size} must be one of {', '.join(map(str, known))}")
