"""Meshes, strategies and rules of activations as a config may give them."""

import pytest

from core.errors import UserError
from core.recipe.parse import parse
from core.recipe.sharding import Fsdp, Sharding, read_strategy


@pytest.mark.parametrize(
  "given, mesh",
  [
    ("auto", "auto"),
    ([("data", -1)], (("data", -1),)),
    ([["slice", 1], ["replica", 1], ["fsdp", -1]], (("slice", 1), ("replica", 1), ("fsdp", -1))),
  ],
)
def test_a_mesh_is_auto_or_pairs(given, mesh):
  assert parse(Sharding, dict(mesh=given)).mesh == mesh


@pytest.mark.parametrize(
  "how, strategy",
  [
    ("replicate", "replicate"),
    ("fsdp", Fsdp()),
    ("fsdp()", Fsdp()),
    ('fsdp(axis="data")', Fsdp(axis="data")),
    (
      "fsdp(axis=('a', 'b'), tensor=-2, min_size_to_shard_mb=0)",
      Fsdp(axis=("a", "b"), tensor=-2, min_size_to_shard_mb=0),
    ),
    ((None, "model"), (None, "model")),
    ([None, None], (None, None)),
  ],
)
def test_a_strategy_has_a_name_or_is_mesh_axes(how, strategy):
  assert parse(Sharding, dict(sharding_strategy=[(".*", how)])).sharding_strategy == ((".*", strategy),)


@pytest.mark.parametrize("fsdp", [Fsdp(), Fsdp(axis="a"), Fsdp(axis=("a", "b"), tensor=-1, min_size_to_shard_mb=0.5)])
def test_a_strategy_is_printed_as_it_is_read(fsdp):
  assert read_strategy(str(fsdp)) == fsdp


MESH = "config.mesh must be a list of (axis, size), [('data', -1)] say, got "
EITHER = "config.mesh must be 'auto' or a list of (axis, size), [('data', -1)] say, got "
PAIR = "config.mesh[0] must be (text that is not empty, a whole number above 0, or -1 for what is left), got "
SIZE = "config.mesh[0][1] must be a whole number above 0, or -1 for what is left, got "
NAME = "config.mesh[0][0] must be text that is not empty, got "


@pytest.mark.parametrize(
  "mesh, line",
  [
    *((value, EITHER) for value in (None, True, 3, 0.5, float("nan"), "", "atuo", {}, {"data": -1}, b"auto", object())),
    *(([value], PAIR) for value in (None, 3, "data", {}, [], ("data",), ("data", 1, 2), ("data", -1, None))),
    *(([("data", value)], SIZE) for value in (0, -2, None, True, 1.0, float("nan"), "2", [], {}, 2**70, -(2**70))),
    *(([(value, 1)], NAME) for value in (None, 1, "", [], {}, ("data",))),
    ([], MESH + "(): it has no axis"),
    ([("data", 2), ("data", 4)], MESH + "(('data', 2), ('data', 4)): 'data' stands there twice"),
    ([("data", -1), ("fsdp", -1)], MESH + "(('data', -1), ('fsdp', -1)): one size alone can be -1"),
  ],
)
def test_a_wrong_mesh_is_refused_by_its_path(mesh, line):
  refuse(dict(mesh=mesh), line)


STRATEGY = 'config.sharding_strategy[0][1] must be "replicate", "fsdp(axis=\'data\')" or mesh axes by dimension, '


@pytest.mark.parametrize(
  "how, words",
  [
    *((value, "") for value in (None, True, 3, float("nan"), {}, object())),
    ("", "cannot read it"),
    ("fsdp('data')", "cannot read it"),
    ("fsdp('data'", "cannot read it"),
    ("fsdp(**{})", "cannot read it"),
    ("fsdp(axis=data)", "cannot read it"),
    ("fsdp(axis={[]: 1})", "cannot read it"),
    ("fsdp(tensor=10**9)", "cannot read it"),
    ("a.fsdp()", "cannot read it"),
    ("[].fsdp", "cannot read it"),
    ("3", "cannot read it"),
    ("fsdp; replicate", "cannot read it"),
    ("\0", "cannot read it"),
    ("(" * 400, "cannot read it"),
    ("fsdp(tensor=" + "-" * 450 + "1)", ""),
    ("x" * 10_000, "it has 10000 characters"),
    ("fsdpp(axis='data')", "there is no strategy 'fsdpp' (did you mean 'fsdp'?)"),
    ("replicate(axis='data')", "replicate has no options"),
    ("fsdp(axsi='data')", "fsdp.axsi is no key of fsdp (did you mean 'axis'?)"),
    ("fsdp(axis='a', axis='b')", ""),
    ("fsdp(axis=3)", "fsdp.axis must be text that is not empty or a list of texts or None, got 3"),
    ("fsdp(axis='')", "fsdp.axis must be"),
    ("fsdp(axis=())", "fsdp.axis must name a mesh axis"),
    ("fsdp(axis=('a', 'a'))", "fsdp.axis names 'a' twice"),
    ("fsdp(axis=('a', 3))", "fsdp.axis[1] must be text that is not empty, got 3"),
    ("fsdp(axis={'a'})", "fsdp.axis must be"),
    ("fsdp(axis='tensor', tensor=-1)", "fsdp.axis names 'tensor', over which the option tensor splits already"),
    ("fsdp(tensor='a')", "fsdp.tensor must be a whole number, got 'a'"),
    ("fsdp(tensor=True)", "fsdp.tensor must be a whole number, got True"),
    ("fsdp(tensor=1.5)", "fsdp.tensor must be a whole number, got 1.5"),
    ("fsdp(min_size_to_shard_mb=-1)", "fsdp.min_size_to_shard_mb must be a number that is not negative, got -1"),
    ("fsdp(min_size_to_shard_mb=1e999)", "fsdp.min_size_to_shard_mb must be a number that is not negative, got inf"),
    ("fsdp(min_size_to_shard_mb=None)", "fsdp.min_size_to_shard_mb must be"),
    ((), "it names no dimension; write 'replicate'"),
    (("a", None, "a"), "'a' splits one dimension only"),
  ],
)
def test_a_wrong_strategy_is_refused_by_its_path(how, words):
  assert words in refuse(dict(sharding_strategy=[(".*", how)]), STRATEGY)


@pytest.mark.parametrize(
  "strategy, line",
  [
    *((value, "config.sharding_strategy must be a list of (") for value in (None, True, 3, "fsdp", {}, object())),
    *(
      ([value], "config.sharding_strategy[0] must be (a reg")
      for value in (None, 3, "fsdp", {}, [], (".*",), ("a",) * 3)
    ),
    *(
      ([(value, "fsdp")], "config.sharding_strategy[0][0] must be a regular expression, got ")
      for value in (None, 3, [])
    ),
    ([("a", "fsdp"), ("[", "fsdp")], "config.sharding_strategy[1][0] must be a regular expression, got '[': untermin"),
    ([("(" * 5_000, "fsdp")], "config.sharding_strategy[0][0] must be a regular expression, got '(((("),
    ([(".*", ("a", 3))], "config.sharding_strategy[0][1][1] must be text that is not empty, got 3"),
    ([(".*", ("a", ""))], "config.sharding_strategy[0][1][1] must be text that is not empty, got ''"),
  ],
)
def test_wrong_rules_are_refused_by_their_path(strategy, line):
  refuse(dict(sharding_strategy=strategy), line)


RULES = "config.sharding_rules must be a list of (kind of dimension, mesh axes), [('act_batch', ('data',))] say, got "


@pytest.mark.parametrize(
  "rules, line",
  [
    *((value, RULES) for value in (None, True, 3, "act_batch", {"act_batch": "data"}, object())),
    *(
      ([value], "config.sharding_rules[0] must be (one of 'act_batch', ")
      for value in (None, 3, "a", [], ("act_batch",))
    ),
    *(
      ([(value, "data")], "config.sharding_rules[0][0] must be one of 'act_batch'")
      for value in (None, 3, "", "act_btach")
    ),
    *(([("act_batch", value)], "config.sharding_rules[0][1] must be ") for value in (True, 3, "", {}, object())),
    ([("act_batch", ("data", 3))], "config.sharding_rules[0][1][1] must be text that is not empty, got 3"),
    ([("act_batch", ("a", "a"))], RULES + "(('act_batch', ('a', 'a')),): 'act_batch' names 'a' twice"),
    *(([("act_batch", none)], RULES + f"(('act_batch', {none}),): 'act_batch' names no axis") for none in (None, ())),
    ([("act_len", "a"), ("act_len", "b")], RULES + "(('act_len', 'a'), ('act_len', 'b')): 'act_len' has two rules"),
  ],
)
def test_wrong_rules_of_activations_are_refused_by_their_path(rules, line):
  refuse(dict(sharding_rules=rules), line)


def refuse(given, line):
  with pytest.raises(UserError) as error:
    parse(Sharding, given)
  assert str(error.value).startswith(line)
  assert len(str(error.value)) <= 300
  assert "\n" not in str(error.value)
  return str(error.value)
