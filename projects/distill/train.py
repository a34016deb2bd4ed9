"""Distils fixed teachers into a student: a good teacher is patient and consistent (Beyer et al. 2022).

./bazelw run //projects/distill:train -- --config=projects/distill/configs/digits.py
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.tasks.classification import Classification
from core.tasks.distillation import Distillation
from core.tasks.task import Task
from core.training import cli


def choose_task(config: Mapping[str, Any]) -> type[Task]:
  """Returns the task that a config is for: without teachers the training of one model, a teacher or a student alone."""
  return Distillation if "teachers" in config else Classification


TASK = choose_task

if __name__ == "__main__":
  cli.main(TASK, project=Path(__file__).parent, default="digits")
