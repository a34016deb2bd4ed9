"""Trains one ViT for all patch sizes, by labels or by a fixed teacher: FlexiViT (Beyer et al. 2023).

./bazelw run //projects/flexivit:train -- --config=projects/flexivit/configs/digits.py
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.tasks.classification import Classification
from core.tasks.task import Task
from core.training import cli
from projects.flexivit.flexible import FlexibleClassification, FlexibleDistillation


def choose_task(config: Mapping[str, Any]) -> type[Task]:
  """Returns the task that a config is for: a FlexiViT at the sizes of `flexi`, distilled where there are teachers.

  Without `flexi` it is the plain model of the config, to compare with.
  """
  if "flexi" not in config:
    return Classification
  return FlexibleDistillation if "teachers" in config else FlexibleClassification


TASK = choose_task

if __name__ == "__main__":
  cli.main(TASK, project=Path(__file__).parent, default="digits")
