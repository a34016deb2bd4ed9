"""The default run, cut to a third, as a person starts it."""

from core.testing import default_run

test_a_third_of_the_default_run_reaches_90_percent_and_says_where_it_lies = default_run.make_test(
  "vit", "--config.total_epochs=40", accuracy=0.90
)
