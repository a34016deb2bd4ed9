"""BiT on the digits, as a person starts it."""

from core.testing import default_run

test_bit_reaches_97_percent = default_run.make_test("vit", config="bit_digits", accuracy=0.97)
