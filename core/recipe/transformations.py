"""The transformations of gradients that `optax_name` chooses and whose arguments `optax` gives, as optax names them.

Those that published configs name and the usual ones stand here. Any other of optax's has the arguments that optax
declares: core.optim.transformations reads them.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from core.recipe.types import Count, Fraction, NonNegative, OneOf, Positive, Rate, Step

# What a moment may be stored in.
MomentDtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
  """The gradients as they are: plain gradient descent."""

  TITLE: ClassVar[str] = "the transformation identity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleByAdam:
  """Adam: the first moment over the root of the second (Kingma & Ba 2015, arXiv:1412.6980).

  Attributes:
    b1: the decay of the first moment, in [0, 1).
    b2: the decay of the second moment, in [0, 1).
    eps: what is added to the root of the second moment.
    eps_root: what is added to the second moment under its root.
    mu_dtype: the type of the first moment. None is that of the parameters.
    nesterov: whether the first moment looks one step ahead.
  """

  TITLE: ClassVar[str] = "the transformation scale_by_adam"

  b1: Rate = 0.9
  b2: Rate = 0.999
  eps: NonNegative = 1e-8
  eps_root: NonNegative = 0.0
  mu_dtype: MomentDtype | None = None
  nesterov: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleByAdafactor:
  """Adafactor as Scaling ViT uses it (Zhai et al. 2021, arXiv:2106.04560, section 3.4).

  Attributes:
    min_dim_size_to_factor: the smallest second largest axis of a parameter whose second moment is factored.
    decay_rate: the exponent by which the second moment's decay approaches its cap, in [0, 1].
    decay_offset: the step at which training, or fine-tuning, starts.
    beta2_cap: the largest decay of the second moment, in [0, 1].
    clipping_threshold: the largest root mean square of a parameter's update. None is no clipping.
    momentum: the decay of the first moment, in [0, 1). None or 0 keeps none.
    dtype_momentum: the type of the first moment.
    eps: what is added to the squared gradient.
  """

  TITLE: ClassVar[str] = "the transformation scale_by_adafactor"

  min_dim_size_to_factor: Count = 32
  decay_rate: Fraction = 0.8
  decay_offset: Step = 0
  beta2_cap: Fraction = 0.999
  clipping_threshold: Positive | None = None
  momentum: Rate | None = 0.9
  dtype_momentum: MomentDtype = "bfloat16"
  eps: NonNegative = 1e-30


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumHp:
  """Momentum stored in half precision.

  Attributes:
    momentum: the decay of the sum of gradients, in [0, 1].
    dtype: the type of that sum.
    nesterov: whether the update looks one step ahead.
  """

  TITLE: ClassVar[str] = "the transformation momentum_hp"

  momentum: Fraction = 0.9
  dtype: MomentDtype = "bfloat16"
  nesterov: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
  """Momentum: a decaying sum of gradients.

  Attributes:
    decay: the decay of the sum, in [0, 1].
    nesterov: whether the update looks one step ahead.
    accumulator_dtype: the type of the sum. None is that of the parameters.
  """

  TITLE: ClassVar[str] = "the transformation trace"

  decay: Fraction
  nesterov: bool = False
  accumulator_dtype: MomentDtype | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleByRms:
  """RMSProp: the gradient over the root of its second moment.

  Attributes:
    decay: the decay of the second moment, in [0, 1).
    eps: what is added to the second moment or to its root.
    initial_scale: the second moment before the first step.
    eps_in_sqrt: whether `eps` is added under the root.
    bias_correction: whether the second moment is corrected for its start.
  """

  TITLE: ClassVar[str] = "the transformation scale_by_rms"

  decay: Rate = 0.9
  eps: NonNegative = 1e-8
  initial_scale: NonNegative = 0.0
  eps_in_sqrt: bool = True
  bias_correction: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleByFactoredRms:
  """Optax's Adafactor without its momentum and clipping (Shazeer & Stern 2018, arXiv:1804.04235).

  Attributes:
    factored: whether second moments of large parameters are factored.
    decay_rate: the exponent by which the second moment's decay approaches 1, in [0, 1].
    step_offset: the step at which training, or fine-tuning, starts.
    min_dim_size_to_factor: the smallest second largest axis of a parameter whose second moment is factored.
    epsilon: what is added to the squared gradient.
  """

  TITLE: ClassVar[str] = "the transformation scale_by_factored_rms"

  factored: bool = True
  decay_rate: Fraction = 0.8
  step_offset: Step = 0
  min_dim_size_to_factor: Count = 128
  epsilon: NonNegative = 1e-30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleByLion:
  """Lion: the sign of a mean of momentum and gradient (Chen et al. 2023, arXiv:2302.06675).

  Attributes:
    b1: the weight of momentum in the update, in [0, 1].
    b2: the decay of momentum, in [0, 1].
    mu_dtype: the type of momentum. None is that of the parameters.
    mode: the sign itself, or a smooth function in its place.
    smooth_beta: how steep that function is. 0 is a line.
  """

  TITLE: ClassVar[str] = "the transformation scale_by_lion"

  b1: Fraction = 0.9
  b2: Fraction = 0.99
  mu_dtype: MomentDtype | None = None
  mode: Literal["hard", "smooth", "refined"] = "hard"
  smooth_beta: NonNegative = 1.0


PREFIX = "big_vision."  # Of published names; it may stand before any name.

_KINDS = {
  "scale_by_adam": ScaleByAdam,
  "scale_by_adafactor": ScaleByAdafactor,
  "momentum_hp": MomentumHp,
  "trace": Trace,
  "identity": Identity,
  "scale_by_lion": ScaleByLion,
  "scale_by_rms": ScaleByRms,
  "scale_by_factored_rms": ScaleByFactoredRms,
}
TRANSFORMATIONS: dict[str, type] = _KINDS | {PREFIX + name: kind for name, kind in _KINDS.items()}

Arguments = Annotated[Any | None, OneOf("optax_name", TRANSFORMATIONS, beside=True, other=dict[str, Any])]
