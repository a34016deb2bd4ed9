"""Trains image and text towers with a sigmoid of every pair: SigLIP and SigLiT (Zhai et al. 2023).

./bazelw run //projects/siglip:train -- --config=projects/siglip/configs/digits.py
"""

from pathlib import Path

from core.tasks.contrastive import Contrastive
from core.training import cli

make_task = Contrastive

if __name__ == "__main__":
  cli.main(make_task, project=Path(__file__).parent, default="digits")
