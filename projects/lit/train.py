"""Trains a text tower to read out a locked image tower: LiT, locked-image tuning (Zhai et al. 2022).

./bazelw run //projects/lit:train -- --config=projects/lit/configs/digits.py
"""

from pathlib import Path

from ml_collections import ConfigDict

from core.tasks.classification import Classification
from core.tasks.contrastive import Contrastive
from core.tasks.task import Task
from core.training import cli


def make_task(config: ConfigDict) -> Task:
  """LiT; or, of a config with classes, the training of an image tower that others lock."""
  return Classification(config) if "num_classes" in config else Contrastive(config)


if __name__ == "__main__":
  cli.main(make_task, project=Path(__file__).parent, default="digits")
