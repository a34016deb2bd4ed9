"""Mistakes in towers, captions and what is locked are refused by their whole path."""

from pathlib import Path

from core.testing import refusals
from projects.lit.train import TASK

test_a_mistake_is_one_line_that_names_it_and_nothing_is_written = refusals.make_test(
  Path(__file__).parent,
  TASK,
  [
    ("config.model.text_model=brt", "config.model.text_model"),
    ("config.model.out_dim=(None,)", "config.model.out_dim"),
    ("config.model_load.img_load_kw.dont_lod=['head/.*']", "config.model_load.img_load_kw.dont_lod is no key of"),
    ("config.model_init.txxt='a.npz'", "config.model_init.txxt is no key of"),
    ("config.loss_form=rings", "config.loss_form must be one of 'plain', 'chunked', 'ring', got 'rings'"),
    (
      "config.sam={'rho': 0.1, 'perturbation': 'per_device'}",
      "config.sam.perturbation 'per_device' does not go with a contrastive loss",
    ),
    ("config.evals.zeroshot.pp_imgg=a", "config.evals.zeroshot.pp_imgg is no key of"),
    ("config.schedule=[('.*', None)]", "config.schedule: every parameter is frozen"),
  ],
)
