"""Trains a text tower to read out a locked image tower: LiT, locked-image tuning (Zhai et al. 2022).

./bazelw run //projects/lit:train -- --config=projects/lit/configs/digits.py
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.tasks.classification import Classification
from core.tasks.contrastive import Contrastive
from core.tasks.task import Task
from core.training import cli


def choose_task(config: Mapping[str, Any]) -> type[Task]:
  """Returns the task that a config is for: with classes the training of an image tower, which LiT locks."""
  return Classification if "num_classes" in config else Contrastive


TASK = choose_task

if __name__ == "__main__":
  cli.main(TASK, project=Path(__file__).parent, default="digits")
