"""Distils fixed teachers into a student: a good teacher is patient and consistent (Beyer et al. 2022).

./bazelw run //projects/distill:train -- --config=projects/distill/configs/digits.py
"""

from pathlib import Path

from ml_collections import ConfigDict

from core.tasks.classification import Classification
from core.tasks.distillation import Distillation
from core.tasks.task import Task
from core.training import cli


def make_task(config: ConfigDict) -> Task:
  """Distillation; or, of a config without teachers, the training of one model: a teacher, or a student alone."""
  return Distillation(config) if "teachers" in config else Classification(config)


if __name__ == "__main__":
  cli.main(make_task, project=Path(__file__).parent, default="digits")
