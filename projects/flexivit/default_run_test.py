"""The default run, as a person starts it: one set of weights, five patch sizes."""

from core.testing import default_run

test_the_default_run_reaches_95_percent_with_patches_of_12_px = default_run.make_test(
  "flexivit", accuracy=0.95, metric="test/2/prec@1"
)
