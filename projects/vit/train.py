"""Trains image classifiers: plain ViT baselines, AugReg, Scaling ViT, and what starts from their weights.

./bazelw run //projects/vit:train -- --config=projects/vit/configs/digits.py
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
