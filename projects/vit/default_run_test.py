"""The default run, as a person starts it, and BiT's."""

from core.testing import default_run

test_the_default_run_reaches_97_percent_and_says_where_it_lies = default_run.make_test("vit", accuracy=0.97)
test_bit_reaches_97_percent = default_run.make_test("vit", config="bit_digits", accuracy=0.97)
