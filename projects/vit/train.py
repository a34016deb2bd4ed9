"""Trains image classifiers: plain ViT baselines, AugReg, Scaling ViT, and what starts from their weights.

./bazelw run //projects/vit:train -- --config=projects/vit/configs/digits.py
"""

from pathlib import Path

from core.training import cli
from core.training.classification import Classification

make_task = Classification

if __name__ == "__main__":
  cli.main(make_task, project=Path(__file__).parent, default="digits")
