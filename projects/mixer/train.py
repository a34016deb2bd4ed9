"""Trains MLP-Mixers, image classifiers of MLPs alone (Tolstikhin et al. 2021).

./bazelw run //projects/mixer:train -- --config=projects/mixer/configs/digits.py
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
