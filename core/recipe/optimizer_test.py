"""The optimizer's keys: what configs say is read, and a wrong value at any of them is refused by its path."""

import pytest

from core.errors import UserError
from core.recipe import schedule
from core.recipe.duration import Duration
from core.recipe.ema import Ema
from core.recipe.optimizer import Agc, Optimizer
from core.recipe.parse import parse
from core.recipe.sam import Sam
from core.recipe.transformations import Identity, MomentumHp, ScaleByAdafactor, ScaleByAdam

BASE = dict(optax_name="scale_by_adam", lr=1e-3)


def test_what_a_config_says_is_read():
  found = parse(
    Optimizer,
    dict(
      optax_name="big_vision.scale_by_adafactor",
      optax=dict(beta2_cap=0.95),
      lr=1,
      lr_mults=[("head/.*", 10)],
      wd=1e-4,
      wd_mults=[(".*", 1.0)],
      grad_clip_norm=1,
      agc=dict(clipping=0.1, exclude=["head/.*"]),
      schedule=[("img/.*", None), (".*", dict(decay_type="cosine", warmup_percent=0.05))],
      ema=dict(decay=0.9999, start_epochs=2),
      sam=dict(rho_max=0.6, rho_min=0.1, alpha=0.6),
      grad_accum_steps=2,
    ),
  )
  assert found == Optimizer(
    optax_name="big_vision.scale_by_adafactor",
    optax=ScaleByAdafactor(beta2_cap=0.95),
    lr=1.0,
    lr_mults=(("head/.*", 10.0),),
    wd=1e-4,
    wd_mults=((".*", 1.0),),
    grad_clip_norm=1.0,
    agc=Agc(clipping=0.1, exclude=("head/.*",)),
    schedule=(("img/.*", None), (".*", schedule.Cosine(warmup=Duration(0.05, "percent")))),
    ema=Ema(decay=0.9999, start=Duration(2, "epochs")),
    sam=Sam(rho_max=0.6, rho_min=0.1, alpha=0.6),
    grad_accum_steps=2,
  )
  assert isinstance(found.lr, float)


@pytest.mark.parametrize(
  "name, arguments, read",
  [
    ("scale_by_adam", dict(b2=0.95, mu_dtype="bfloat16"), ScaleByAdam(b2=0.95, mu_dtype="bfloat16")),
    ("big_vision.momentum_hp", {}, MomentumHp()),
    ("identity", {}, Identity()),
    ("scale_by_yogi", dict(b1=0.8), dict(b1=0.8)),  # core.optim knows its arguments.
  ],
)
def test_the_name_chooses_the_arguments(name, arguments, read):
  assert parse(Optimizer, dict(optax_name=name, lr=1, optax=arguments)).optax == read
  assert parse(Optimizer, dict(optax_name=name, lr=1, optax=None)).optax is None


def test_without_a_schedule_the_rate_is_constant():
  assert parse(Optimizer, BASE).schedule == schedule.Stair()


@pytest.mark.parametrize("unit", ["steps", "examples", "epochs", "percent"])
def test_the_boundaries_of_a_stair_have_a_unit_and_a_path(unit):
  stair = parse(schedule.Schedule, {f"stair_{unit}": [0.25, 0.5], "mults": [0.1, 0.01]}, "config.schedule")
  (first, second) = stair.boundaries("config.schedule")
  assert (first, second) == (Duration(0.25, unit), Duration(0.5, unit))
  assert first.key == f"config.schedule.stair_{unit}"


NAN, INF = float("nan"), float("inf")
NO_NUMBERS = [True, False, NAN, INF, -INF, -1, "", "0.1", [], [1], {}, {"a": 1}, object()]
NO_COUNTS = [None, True, NAN, INF, -1, 0, 1.0, 2**63, "", "2", [], {}, object()]
NO_BOOLS = [None, 0, 1, 1.0, NAN, "", "True", [], {}, object()]
NO_DICTS = [True, 3, NAN, "", "text", [], [{}], object()]
NO_RULES = [True, 3, NAN, "", ".*", {}, {".*": 1}, object()]
NO_PAIRS = [None, True, 3, NAN, "", ".*", {}, [], (".*",), (".*", 1, 2), object()]
NO_REGEXES = [None, True, 3, NAN, [], {}, "[", "(", "*", "(?P<a", object()]
NO_NAMES = [None, True, 3, NAN, "", [], {}, object()]
TOO_LARGE = [3.5e38, 1e300, 2**200]


def at(key, values, around=lambda value: value):
  """Returns wrong values for a key: `config.key` is the path, and the value stands in `around`."""
  top = key.split(".")[0].split("[")[0]
  return [(key, {top: around(value)}) for value in values]


WRONG = [
  *at("lr", [None, *NO_NUMBERS, *TOO_LARGE]),
  *at("wd", [*NO_NUMBERS, *TOO_LARGE]),
  *at("grad_clip_norm", [*NO_NUMBERS, *TOO_LARGE]),
  *at("grad_accum_steps", NO_COUNTS),
  *at("optax_name", NO_NAMES),
  *at("optax", [*NO_DICTS, NAN]),
  *at("optax.b1", [None, *NO_NUMBERS, 1.1], lambda value: {"b1": value}),
  *at("optax.nesterov", NO_BOOLS, lambda value: {"nesterov": value}),
  *at("optax.mu_dtype", [True, 3, "", "int8", [], {}], lambda value: {"mu_dtype": value}),
  *at("lr_mults", NO_RULES),
  *at("lr_mults[0]", NO_PAIRS, lambda value: [value]),
  *at("lr_mults[0][0]", NO_REGEXES, lambda value: [(value, 1)]),
  *at("lr_mults[0][1]", [None, 0, *NO_NUMBERS], lambda value: [(".*", value)]),
  *at("wd_mults", NO_RULES),
  *at("wd_mults[1][0]", NO_REGEXES, lambda value: [("a", 0), (value, 1)]),
  *at("wd_mults[1][1]", [None, *NO_NUMBERS], lambda value: [("a", 0), (".*", value)]),
  *at("agc", NO_DICTS),
  *at("agc.clipping", [None, 0, *NO_NUMBERS], lambda value: {"clipping": value}),
  *at("agc.eps", [None, 0, *NO_NUMBERS], lambda value: {"eps": value}),
  *at("agc.exclude", NO_RULES, lambda value: {"exclude": value}),
  *at("agc.exclude[0]", NO_REGEXES, lambda value: {"exclude": [value]}),
  *at("agc.clip", [1], lambda value: {"clip": value}),
  *at("schedule", [None, *[value for value in NO_DICTS if value not in ([], [{}])]]),
  *at("schedule[0]", NO_PAIRS, lambda value: [value]),
  *at("schedule[0][0]", NO_REGEXES, lambda value: [(value, {})]),
  *at("schedule[0][1]", NO_DICTS, lambda value: [(".*", value)]),
  *at("schedule.decay_type", [True, 3, "", "cosin", [], {}], lambda value: {"decay_type": value}),
  *at("schedule[0][1].decay_type", ["cosin"], lambda value: [(".*", {"decay_type": value})]),
  *at("schedule.warmup_steps", [None, *NO_NUMBERS], lambda value: {"warmup_steps": value}),
  *at("schedule.cooldown_percent", [None, *NO_NUMBERS, 1.5], lambda value: {"cooldown_percent": value}),
  *at("schedule.scale_with_batchsize", NO_BOOLS, lambda value: {"scale_with_batchsize": value}),
  *at("schedule.mult", [None, *NO_NUMBERS], lambda value: {"mult": value}),
  *at("schedule.end", NO_NUMBERS, lambda value: {"decay_type": "linear", "end": value}),
  *at("schedule.power", [None, 0, *NO_NUMBERS], lambda value: {"decay_type": "polynomial", "power": value}),
  *at("schedule.timescale_steps", [None, 0, *NO_NUMBERS], lambda v: {"decay_type": "rsqrt", "timescale_steps": v}),
  *at("schedule.timescale", [100], lambda value: {"decay_type": "rsqrt", "timescale": value}),
  *at("schedule.steps", [True, 3, NAN, "", "10", {}], lambda value: {"steps": value, "mults": [1]}),
  *at("schedule.steps[0]", [None, *NO_NUMBERS], lambda value: {"steps": [value], "mults": [1]}),
  *at("schedule.stair_percent[0]", [None, *NO_NUMBERS, 1.5], lambda v: {"stair_percent": [v], "mults": [1]}),
  *at("schedule.mults", [None, True, 3, "", {}, [1, 2]], lambda value: {"steps": [1], "mults": value}),
  *at("schedule.mults[0]", [None, *NO_NUMBERS], lambda value: {"steps": [1], "mults": [value]}),
  *at("schedule.rate", [1], lambda value: {"rate": value}),
  *at("ema", NO_DICTS),
  *at("ema.decay", [None, 1, *NO_NUMBERS], lambda value: {"decay": value}),
  *at("ema.dtype", [None, True, 3, "", "float64", [], {}], lambda value: {"decay": 0.9, "dtype": value}),
  *at("ema.rounding", [True, 3, "", "kahan", [], {}], lambda value: {"decay": 0.9, "rounding": value}),
  *at("ema.rounding", ["stochastic"], lambda value: {"decay": 0.9, "dtype": "float32", "rounding": value}),
  *at("ema.warmup", NO_BOOLS, lambda value: {"decay": 0.9, "warmup": value}),
  *at("ema.start_steps", [None, *NO_NUMBERS], lambda value: {"decay": 0.9, "start_steps": value}),
  *at("ema.sharding", [True, 3, NAN, "", [], {}], lambda value: {"decay": 0.9, "sharding": value}),
  *at("sam", NO_DICTS),
  *at("sam.rho", NO_NUMBERS, lambda value: {"rho": value}),
  *at("sam.rho_max", NO_NUMBERS, lambda value: {"rho_max": value}),
  *at("sam.rho_min", [*NO_NUMBERS, 2], lambda value: {"rho_max": 1, "rho_min": value}),
  *at("sam.alpha", [None, *NO_NUMBERS], lambda value: {"rho": 1, "alpha": value}),
  *at("sam.adaptive", NO_BOOLS, lambda value: {"rho": 1, "adaptive": value}),
  *at("sam.adaptive_perturbation", [True], lambda value: {"rho": 1, "adaptive": True, "adaptive_perturbation": value}),
  *at("sam.adaptive_perturbation", NO_BOOLS, lambda value: {"rho": 1, "adaptive_perturbation": value}),
  *at("sam.every", NO_COUNTS, lambda value: {"rho": 1, "every": value}),
  *at("sam.reuse", [None, *NO_NUMBERS], lambda value: {"rho": 1, "reuse": value}),
  *at("sam.decompose_against", [None, True, 3, "", []], lambda value: {"rho": 1, "decompose_against": value}),
  *at("sam.perturbation", [None, True, 3, "", "local"], lambda value: {"rho": 1, "perturbation": value}),
]


@pytest.mark.parametrize("key, given", WRONG, ids=lambda part: part if isinstance(part, str) else repr(part)[:60])
def test_a_wrong_value_is_refused_by_its_path(key, given):
  with pytest.raises(UserError) as error:
    parse(Optimizer, BASE | given)
  assert str(error.value).startswith((f"config.{key} ", f"config.{key}:"))
  assert len(str(error.value)) <= 300
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", BASE)
def test_a_key_that_must_be_there_is_missed_by_name(missing):
  with pytest.raises(UserError, match=rf"^config\.{missing} is missing; it is the "):
    parse(Optimizer, {key: value for key, value in BASE.items() if key != missing})
