"""The default run, as a person starts it."""

from core.testing import default_run

test_the_default_run_reaches_98_percent_and_says_where_it_lies = default_run.make_test("distill", accuracy=0.98)
