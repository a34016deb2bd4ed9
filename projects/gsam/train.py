"""Trains image classifiers that generalize from flat minima: SAM (Foret et al. 2021) and GSAM (Zhuang et al. 2022).

./bazelw run //projects/gsam:train -- --config=projects/gsam/configs/digits.py

The idea is `config.sam`, an option of every trainer: see core/optim/sam.py.
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

from pathlib import Path

from core.tasks.classification import Classification
from core.training import cli

TASK = Classification

if __name__ == "__main__":
  cli.main(TASK, project=Path(__file__).parent, default="digits")
