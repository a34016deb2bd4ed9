"""Mistakes in a mixture, in rendering and in co-training are refused by their whole path."""

from pathlib import Path

from core.testing import refusals
from projects.clippo.train import TASK

test_a_mistake_is_one_line_that_names_it_and_nothing_is_written = refusals.make_test(
  Path(__file__).parent,
  TASK,
  [
    ("config.input.data.images=0", "config.input.data.images must be a number above 0, got 0"),
    ("config.input.data.more=1", "config.input.more is missing; the mixture data names it"),
    ("config.input.images.ppp=a", "config.input.images.ppp is no key of a component of the input"),
    ("config.input.images.pp=render_txt(8)", "config.input.images.pp"),
    ("config.co_training=True", "config.co_training must be a dict"),
    ("config.model.image.pool_type=mean", "config.model.image.pool_type must be one of"),
    ("config.model_init.text='a.npz'", "config.model_init"),
  ],
)
