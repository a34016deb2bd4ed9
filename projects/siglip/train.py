"""Trains image and text towers with a sigmoid of every pair: SigLIP and SigLiT (Zhai et al. 2023).

./bazelw run //projects/siglip:train -- --config=projects/siglip/configs/digits.py
"""

from core import signals

if __name__ == "__main__":
  signals.listen()  # Before imports that take long.

from pathlib import Path

from core.tasks.contrastive import Contrastive
from core.training import cli

TASK = Contrastive

if __name__ == "__main__":
  cli.main(TASK, project=Path(__file__).parent, default="digits")
