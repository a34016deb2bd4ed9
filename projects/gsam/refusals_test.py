"""Mistakes in `config.sam` and in the evaluation of sharpness are refused by their whole path."""

from pathlib import Path

from core.testing import refusals
from projects.gsam.train import TASK

test_a_mistake_is_one_line_that_names_it_and_nothing_is_written = refusals.make_test(
  Path(__file__).parent,
  TASK,
  [
    ("config.sam=0.1", "config.sam must be a dict"),
    ("config.sam.rho_min=0.5", "config.sam.rho_min 0.5 must not exceed rho_max, 0.1"),
    ("config.sam.rho=0.5", "config.sam: give rho, or rho_max and rho_min"),
    ("config.sam.minimize_fp=True", "config.sam.minimize_fp is called decompose_against here"),
    ("config.sam.perturbation='device'", "config.sam.perturbation must be one of 'global', 'per_device'"),
    ("config.evals.sharpness.rho=-1", "config.evals.sharpness.rho must be"),
    ("config.evals.sharpness.max_iterations=0", "config.evals.sharpness.max_iterations must be"),
  ],
)
