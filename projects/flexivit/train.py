"""Trains one ViT for all patch sizes, by labels or by a fixed teacher: FlexiViT (Beyer et al. 2023).

./bazelw run //projects/flexivit:train -- --config=projects/flexivit/configs/digits.py
"""

from pathlib import Path

from ml_collections import ConfigDict

from core.tasks.classification import Classification
from core.tasks.distillation import Distillation
from core.tasks.task import Task
from core.training import cli
from projects.flexivit.flexible import Flexible


def make_task(config: ConfigDict) -> Task:
  """A FlexiViT at the sizes of `config.flexi`, distilled where the config has teachers.

  Without `flexi` it is the plain model of the config, to compare with.
  """
  if "flexi" not in config:
    return Classification(config)
  if "teachers" in config:
    return Flexible(config, lambda seqhw: Distillation(config, seqhw=seqhw))
  return Flexible(config, lambda seqhw: Classification(_at_size(config, seqhw)))


def _at_size(config: ConfigDict, seqhw: int) -> ConfigDict:
  at_size = ConfigDict(config).unlock()
  at_size.model.seqhw = seqhw
  return at_size


if __name__ == "__main__":
  cli.main(make_task, project=Path(__file__).parent, default="digits")
