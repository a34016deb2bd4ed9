"""Sharpness-aware minimization as a config asks for it; core.optim.sam has its equations."""

import dataclasses
from typing import ClassVar, Literal

from core.recipe.types import Count, NonNegative, Refused

_PUBLISHED = {
  "minimize_fp": "is called decompose_against here: 'perturbed' for True, 'clean' for False",
  "lr_max": "is read off config.schedule; leave it out",
  "lr_min": "is read off config.schedule; leave it out",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sam:
  """Sharpness-aware steps: SAM, ASAM, GSAM, LookSAM, m-SAM.

  Attributes:
    rho: the radius of the perturbation. 0 is plain training.
    rho_max: the radius at the peak of the schedule, in place of `rho`.
    rho_min: the radius at the lowest point of the schedule after its peak. `rho_max` if not given.
    alpha: the weight of GSAM's perpendicular part. 0 is SAM.
    adaptive: whether the radius is relative to each parameter's size (ASAM).
    adaptive_perturbation: whether the step to the perturbed parameters is multiplied by each one's size, as in GSAM's
      published code.
    decompose_against: which gradient GSAM keeps, that at the perturbed parameters or the clean one.
    every: how many steps have one second pass (LookSAM). 1 is one each step.
    reuse: the weight of the kept direction in LookSAM's steps between.
    perturbation: whether one perturbation is for the whole batch, or each device's for its own part of it.
  """

  TITLE: ClassVar[str] = "sam"

  rho: NonNegative | None = None
  rho_max: NonNegative | None = None
  rho_min: NonNegative | None = None
  alpha: NonNegative = 0.0
  adaptive: bool = False
  adaptive_perturbation: bool = False
  decompose_against: Literal["perturbed", "clean"] = "perturbed"
  every: Count = 1
  reuse: NonNegative = 0.7
  perturbation: Literal["global", "per_device"] = "global"

  @classmethod
  def hint(cls, key: str) -> str | None:
    """Returns what a published key is called here."""
    return _PUBLISHED.get(key)

  def __post_init__(self):
    if (self.rho is None) == (self.rho_max is None):
      raise Refused("give rho, or rho_max and rho_min")
    if self.rho_max is None and self.rho_min is not None:
      raise Refused("needs rho_max; rho alone is one radius for all steps", key="rho_min")
    if self.adaptive and self.adaptive_perturbation:
      raise Refused("is GSAM's form, and adaptive ASAM's; keep one of them", key="adaptive_perturbation")
    if self.least > self.most:
      raise Refused(f"{self.least:g} must not exceed rho_max, {self.most:g}", key="rho_min")

  @property
  def most(self) -> float:
    """Returns the largest radius."""
    return self.rho if self.rho_max is None else self.rho_max

  @property
  def least(self) -> float:
    """Returns the smallest radius."""
    return self.most if self.rho_min is None else self.rho_min
