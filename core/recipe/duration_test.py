import pytest

from core.errors import UserError
from core.recipe.duration import Duration

KNOWN = dict(batch_size=100, data_size=1_000, total_steps=500)


@pytest.mark.parametrize(
  "value, unit, want",
  [
    (7, "steps", 7),
    (250, "examples", 2),
    (1.5, "epochs", 15),
    (0.1, "percent", 50),
    (1e-9, "percent", 1),
    (0, "steps", 0),
  ],
)
def test_every_unit_becomes_steps(value, unit, want):
  assert Duration(value, unit).steps(**KNOWN) == want


def test_a_unit_that_cannot_be_known_is_refused_with_the_remedy():
  with pytest.raises(UserError, match=r"config\.schedule\.warmup_epochs .* give config\.schedule\.warmup_steps"):
    Duration(2, "epochs", "config.schedule.warmup_epochs").steps(batch_size=4)


def test_more_steps_than_a_counter_holds_are_refused():
  with pytest.raises(UserError, match=r"config\.total_examples must be fewer steps"):
    Duration(1e30, "examples", "config.total_examples").steps(batch_size=1)
