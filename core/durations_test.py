import pytest

from core import durations
from core.errors import UserError

KNOWN = dict(batch_size=100, data_size=1_000, total_steps=500)


@pytest.mark.parametrize(
  "config, want",
  [
    ({"warmup_steps": 7}, 7),
    ({"warmup_examples": 250}, 2),
    ({"warmup_epochs": 1.5}, 15),
    ({"warmup_percent": 0.1}, 50),
    ({"warmup_percent": 1e-9}, 1),
    ({"warmup_steps": 0}, 0),
    ({}, 3),
    ({"warmup_steps": None}, 3),
  ],
)
def test_every_unit_becomes_steps(config, want):
  assert durations.steps("warmup", config, default=3, **KNOWN) == want


@pytest.mark.parametrize(
  "config, words",
  [
    ({"warmup_steps": 7, "warmup_epochs": 1}, "both set"),
    ({"warmup_steps": -1}, "not negative"),
    ({"warmup_steps": "7"}, "not negative"),
    ({"warmup_percent": 30}, "fraction"),
  ],
)
def test_a_duration_that_makes_no_sense_is_refused(config, words):
  with pytest.raises(UserError, match=words):
    durations.steps("warmup", config, **KNOWN)


def test_a_unit_that_cannot_be_known_is_refused_with_the_remedy():
  with pytest.raises(UserError, match="give warmup_steps"):
    durations.steps("warmup", {"warmup_epochs": 2}, batch_size=4)
