"""Trains one tower for images and rendered text: CLIPPO, CLIP with pixels only (Tschannen et al. 2023).

./bazelw run //projects/clippo:train -- --config=projects/clippo/configs/digits.py
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

from pathlib import Path

from core.training import cli
from projects.clippo.co_training import CoTraining
from projects.clippo.pp import labelled, sentences  # noqa: F401 (the ops register themselves)

TASK = CoTraining

if __name__ == "__main__":
  cli.main(TASK, project=Path(__file__).parent, default="digits")
