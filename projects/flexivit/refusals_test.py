"""Mistakes around a FlexiViT's sizes are refused by their whole path; flexible_test has those of `flexi` itself."""

from pathlib import Path

from core.testing import refusals
from projects.flexivit.train import TASK

test_a_mistake_is_one_line_that_names_it_and_nothing_is_written = refusals.make_test(
  Path(__file__).parent,
  TASK,
  [
    ("config.flexi=None", "config.flexi must be a dict, got None"),
    ("config.flexi.seqhw.v=8", "config.flexi.seqhw.v must be"),
    ("config.model.seqhw='a'", "config.model.seqhw"),
    ("config.model.seqhw=3", "config.model.seqhw is of no effect where config.flexi.seqhw gives the lengths"),
    (
      ("config.flexi.seqhw.v=(2, 5)", "config.flexi.seqhw.p=None"),
      "config.flexi.seqhw.v: 5x5 patches (seqhw) do not divide an image of 24x24 px",
    ),
    ("config.flexi.seqhw.p=()", "config.flexi.seqhw.p has 0 weights, and v has"),
    ("config.model_name=flexivit", "config.model_name: there is no 'flexivit' (did you mean 'flexi_vit'?)"),
  ],
)
