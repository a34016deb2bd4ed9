"""Every config of this project runs, evaluates and resumes."""

from pathlib import Path

from core.testing import configs
from projects.clippo.train import TASK

test_every_config_runs_evaluates_and_resumes = configs.make_test(Path(__file__).parent, TASK)
