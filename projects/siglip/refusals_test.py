"""Mistakes in what a contrastive training reads are refused by their whole path."""

from pathlib import Path

from core.testing import refusals
from projects.siglip.train import TASK

test_a_mistake_is_one_line_that_names_it_and_nothing_is_written = refusals.make_test(
  Path(__file__).parent,
  TASK,
  [
    ("config.loss=sigmid", "config.loss must be one of 'softmax', 'sigmoid', got 'sigmid'"),
    ("config.num_classes=10", "config.num_classes is no key of contrastive training"),
    ("config.model.bias_init='low'", "config.model.bias_init must be"),
    ("config.model.text.vocab_size=0", "config.model.text.vocab_size must be"),
    ("config.init_shapes=[(1, 2)]", "config.init_shapes"),
    ("config.evals.retrieval.type=retreival", "config.evals.retrieval.type: there is no 'retreival' (did you mean"),
  ],
)
