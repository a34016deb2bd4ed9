"""What every training has in common; `core.recipe.tasks` adds what each kind of it reads besides."""

import dataclasses
from typing import Any, ClassVar

from core.recipe import words
from core.recipe.duration import Duration, Length, steps
from core.recipe.evaluators import Evaluator
from core.recipe.evaluators_base import Evaluation
from core.recipe.input import Input
from core.recipe.optimizer import Optimizer
from core.recipe.sharding import Sharding
from core.recipe.types import Count, FilePath, Refused, Seed

_LONGEST_NAME = 200  # Bytes. File systems take 255, and unfinished files have longer names.
_OWN = ("time",)  # Prefixes of the metrics that are a run's own.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Optimizer, Sharding):
  """A whole run.

  Attributes:
    total: the length of training. 0 trains nothing: every evaluation runs once on the parameters to start from.
    seed: seeds the parameters, the order of the data, augmentation, dropout and mixup.
    input: the training data.
    evals: evaluations by name, the prefix of their metrics.
    log_training: how often metrics of training are logged.
    ckpt: how often a checkpoint is saved.
    keep_ckpt: how often a checkpoint is kept for good; None keeps the newest alone.
    resume: a checkpoint of another run to go on from, WORKDIR/checkpoints/STEP, or WORKDIR for its newest; of
      big_vision WORKDIR/checkpoint.bv, which is its newest, or checkpoint.bv-STEP, or checkpoint.npz of older heads.
    profile_steps: (first, last) step of a profiler trace.
  """

  TITLE: ClassVar[str] = "a config"

  total: Length
  seed: Seed = 0
  input: Input
  evals: dict[str, Evaluator] = dataclasses.field(default_factory=dict)
  log_training: Duration = steps(50)
  ckpt: Duration = steps(1_000)
  keep_ckpt: Duration | None = None
  resume: FilePath | None = None
  profile_steps: tuple[Count, Count] | None = None

  def __post_init__(self):
    self._check_clipping()
    for key in ("log_training", "ckpt"):
      if (every := getattr(self, key)).value == 0:
        raise Refused("must be above 0; the last step has its own whatever it is", key=f"{key}_{every.unit}")
    for name in self.evals:
      if self.ema is not None and name.endswith("_ema"):
        raise Refused(
          "names an evaluation of the average, which config.ema adds; call it otherwise", key=f"evals.{name}"
        )
      if not name or "/" in name or name.startswith(".") or len(name.encode()) > _LONGEST_NAME or name in _OWN:
        shown = words.shown(name)
        raise Refused(f"{shown} is the prefix of metrics and the name of a folder, and cannot be one", key="evals")
    self._check_prefixes()
    if self.profile_steps and self.profile_steps[0] > self.profile_steps[1]:
      raise Refused(f"are the first and the last step, got {self.profile_steps}", key="profile_steps")

  def _check_clipping(self) -> None:
    """Refuses what mixes the examples of a batch where each is clipped by itself."""
    if not self.grad_clip_per_example:
      return
    if not self.grad_clip_norm:
      raise Refused("needs grad_clip_norm, the largest norm of an example's gradient", key="grad_clip_per_example")
    mixes = {"sam": self.sam is not None, "mixup": getattr(self, "mixup", None) and self.mixup.p > 0}
    for key in filter(mixes.get, mixes):
      raise Refused(
        f"does not go with {key}, which takes the examples of a batch together", key="grad_clip_per_example"
      )

  def _check_prefixes(self) -> None:
    """Refuses two evaluations that would write the same metrics."""
    of: dict[tuple[type, str], str] = {}
    for name, each in self.evals.items():
      other = of.setdefault((type(each), metric_prefix(name, each)), name)
      if other != name:
        raise Refused(
          f"must not be {metric_prefix(name, each)!r}: so begin the metrics of evals.{other}",
          key=f"evals.{name}.prefix",
        )

  def describe_model(self) -> str:
    """Returns the model in a few words, "vit S/16"."""
    return named(getattr(self, "model_name", "model"), getattr(self, "model", None))


def metric_prefix(name: str, options: Evaluation) -> str:
  """Returns what begins the names of an evaluation's metrics, `"val/"` unless it has a prefix of its own."""
  return f"{name}/" if options.prefix is None else options.prefix


def named(name: str, options: Any) -> str:
  """Returns a model's family and variant."""
  return f"{name} {getattr(options, 'variant', None) or ''}".strip()
