"""Mistakes in a Mixer's options are refused by their whole path."""

from pathlib import Path

from core.testing import refusals
from projects.mixer.train import TASK

test_a_mistake_is_one_line_that_names_it_and_nothing_is_written = refusals.make_test(
  Path(__file__).parent,
  TASK,
  [
    ("config.model.num_block=3", "config.model.num_block is no key of the model mixer (did you mean 'num_blocks'?)"),
    ("config.model.stoch_depth=1", "config.model.stoch_depth must be a number in [0, 1), got 1"),
    ("config.model.posemb=learn", "config.model.posemb is no key of the model mixer"),
    ("config.mixup.p=nan", "config.mixup.p must be a number that is not negative, got 'nan'"),
  ],
)
