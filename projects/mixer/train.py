"""Trains MLP-Mixers, image classifiers of MLPs alone (Tolstikhin et al. 2021).

./bazelw run //projects/mixer:train -- --config=projects/mixer/configs/digits.py
"""

from pathlib import Path

from core.tasks.classification import Classification
from core.training import cli

make_task = Classification

if __name__ == "__main__":
  cli.main(make_task, project=Path(__file__).parent, default="digits")
