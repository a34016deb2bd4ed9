"""Each key of a config of big_vision goes where its rule says; configs of projects that are not here are refused."""

import json

import jax.numpy as jnp
import pytest

from core import data_files
from core.errors import UserError
from core.recipe import load
from core.recipe.parse import parse
from core.recipe.write import to_config
from core.training import cli
from tools import trained_model
from tools.port_config import port, port_config, rules
from tools.port_config.examples import PP, classifier, evaluation
from tools.port_config.rule import IDLE, KEPT, OTHER, REFUSED, RENAMED, VERDICTS

TESTDATA = data_files.find("tools/port_config/testdata")
CONFIGS = sorted(TESTDATA.glob("*.json"))
MISSING = [json.loads(line) for line in (TESTDATA / "missing_projects.jsonl").read_bytes().splitlines()]


def row(made, there):
  """Returns the one row that tells of a key."""
  (found,) = [each for each in made.said if each.there.partition(" = ")[0] == there]
  return found


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_published_config_is_ported_without_a_refusal(file, tmp_path):
  made = port.port(json.loads(file.read_bytes()))
  assert not [each for each in made.said if each.verdict == REFUSED]
  kind, recipe = cli.read_recipe(trained_model.trainer_of(made.project).TASK, made.out)
  # The file says what was ported, though it leaves out what is the default.
  output = tmp_path / "ported.py"
  assert port_config.main([f"--config={file}", f"--output={output}", "--no_dry_run"]) == 0
  assert to_config(parse(kind.Recipe, load.read(str(output)))) == to_config(recipe)
  assert max(map(len, output.read_text().splitlines())) <= 120


@pytest.mark.parametrize("each", MISSING, ids=lambda each: each["file"])
def test_a_config_of_a_missing_project_is_refused_by_its_name(each):
  name = each["file"].split("__")[1]
  with pytest.raises(UserError, match=rf"is of the project '{name}', which is not here; there are clippo, .*, vit$"):
    port.port(each["config"])


def test_every_config_of_the_folder_is_here():
  assert len(CONFIGS) + len(MISSING) == 63
  assert {port.project_of(json.loads(file.read_bytes())) for file in CONFIGS} == {
    *("vit", "mixer", "clippo", "distill", "flexivit", "gsam", "siglip")
  }


def test_each_value_of_the_result_is_one_that_the_config_gave_or_a_rule_tells_of():
  made = port.port(classifier(seed=3, wd=0.1))
  assert made.out["seed"] == 3
  assert made.out["lr"] == 0.1
  told = {each.here.partition(" = ")[0] or each.there for each in made.said}
  assert {key for key in made.out if key not in ("input", "model")} <= told


@pytest.mark.parametrize(
  "key", ["pp_modules", "prefetch_to_device", "ckpt_timeout", "res", "runlocal", "fewshot", "name"]
)
def test_what_no_number_depends_on_is_left_out(key):
  made = port.port(classifier(**{key: 3}))
  assert row(made, key).verdict == IDLE
  assert key not in made.out


def test_a_key_that_no_published_trainer_reads_is_told():
  assert row(port.port(classifier(mine=3)), "mine").said == rules.UNKNOWN


def test_durations_without_a_unit_are_steps():
  made = port.port(classifier(schedule=dict(decay_type="rsqrt", timescale=7, shift=2, warmup_epochs=1, power=3)))
  assert made.out["schedule"] == dict(decay_type="rsqrt", timescale_steps=7, shift_steps=2, warmup_epochs=1)
  assert row(made, "schedule.power").verdict == IDLE


def test_names_of_the_train_state_become_those_of_parameters():
  given = [["params/img/.*", "replicate"], ["opt/.*", "fsdp"], ["params/.*", "fsdp(axis='data')"]]
  made = port.port(classifier(sharding_strategy=given))
  assert made.out["sharding_strategy"] == [("img/.*", "replicate"), (".*", "fsdp(axis='data')")]


def test_what_is_not_given_is_written_where_it_means_something_else_here():
  config = classifier(loss=None)
  del config["input"]["shuffle_buffer_size"]
  made = port.port(config)
  assert made.out["loss"] == "sigmoid_xent"
  assert made.out["mesh"] == [("data", -1)]
  assert made.out["input"]["shuffle_buffer_size"] == 1
  assert {row(made, f"no {key}").verdict for key in ("loss", "mesh", "input.shuffle_buffer_size")} == {OTHER}


@pytest.mark.parametrize(
  "changes, first",
  [({}, True), (dict(skip_first=True), False), (dict(skip_first=False), True), (dict(log_steps=None), "only")],
)
def test_evaluations_run_before_the_first_step_unless_told_otherwise(changes, first):
  config = evaluation(**changes)
  if changes.get("log_steps", 5) is None:
    del config["evals"]["val"]["log_steps"]
  assert port.port(config).out["evals"]["val"].get("first") == first


def test_an_evaluation_without_a_type_is_of_the_one_that_it_is_called():
  config = evaluation()
  entry = config["evals"].pop("val")
  del entry["type"]
  assert port.port({**config, "evals": dict(classification=entry)}).out["evals"]["classification"]["type"] == (
    "classification"
  )


def test_an_evaluation_whose_name_is_no_folder_keeps_the_names_of_its_metrics():
  config = evaluation()
  config["evals"] = {"z/val": config["evals"]["val"]}
  (entry,) = port.port(config).out["evals"].items()
  assert entry[0] == "z_val"
  assert entry[1]["prefix"] == "z/val/"


def test_an_evaluation_of_which_a_part_is_refused_is_left_out():
  made = port.port(evaluation(pred="loss"))
  assert row(made, "evals.val.pred").verdict == REFUSED
  assert made.out["evals"] == {}


def test_an_op_of_texts_keeps_those_that_are_empty():
  made = port.port(evaluation(pp_fn="decode||lower|tokenize(8, eos='no')"))
  assert made.out["evals"]["val"]["pp_fn"] == "decode|lower|tokenize(8, eos='no', empty='keep')"


def test_labels_of_imagenet21k_are_those_of_our_builder():
  config = evaluation(data=dict(name="imagenet21k", split="full"), pp_fn="onehot(21843)|keep('labels')")
  pp = "onehot(21843, key='label', key_result='labels')|keep('labels')"
  assert port.port(config).out["evals"]["val"]["pp_fn"] == pp


def test_a_bar_in_quotes_joins_no_ops():
  config = classifier()
  config["input"]["pp"] = "keep('a|b')||flatten"
  assert port.port(config).out["input"]["pp"] == "keep('a|b')|flatten"


@pytest.mark.parametrize("pp", ["no_such_op", "resize(8, no_such=3)", "resize("])
def test_an_op_that_is_none_is_refused(pp):
  config = classifier()
  config["input"]["pp"] = pp
  assert row(port.port(config), "input.pp").verdict == REFUSED


DISTILLED = dict(
  model_name=None, model=None, loss=None, teachers=["prof"], student_name="vit", prof_name="vit", prof_init="x.npz",
  student=dict(variant="S/16"), prof=dict(variant="B/16"),
)  # fmt: skip


@pytest.mark.parametrize(
  "pred, here",
  [
    ("student_fwd", "student"),
    ("prof_fwd", "prof"),
    ("prof", "prof"),
    ("student_prof_fwd", dict(student="student", teacher="prof")),
    ("student_seqhw=8", "student_8"),
    ("student_seqhw=8_prof", dict(student="student_8", teacher="prof")),
  ],
)
def test_predictions_have_the_names_of_ours(pred, here):
  config = {**evaluation(pred=pred), **DISTILLED, "flexi": dict(seqhw=dict(v=[8, 4], p=[1, 1]))}
  made = port.port({key: value for key, value in config.items() if value is not None})
  assert made.out["evals"]["val"]["pred"] == here


@pytest.mark.parametrize("pred", ["student_seqhw=5", "teacher_ensemble_fwd", "student_other_fwd", "loss"])
def test_a_prediction_that_there_is_none_of_is_refused(pred):
  config = {**evaluation(pred=pred), **DISTILLED, "flexi": dict(seqhw=dict(v=[8, 4], p=[1, 1]))}
  made = port.port({key: value for key, value in config.items() if value is not None})
  assert row(made, "evals.val.pred").verdict == REFUSED


def test_the_radius_of_gsam_is_that_at_the_ends_of_the_schedule():
  gsam = dict(rho_max=0.6, rho_min=0.1, alpha=0.5, lr_max=0.1, lr_min=0.0, adaptive_perturbation=False)
  linear = dict(decay_type="linear", linear_end=0.5)
  made = port.port(classifier(gsam=gsam, schedule=linear))
  assert made.project == "gsam"
  assert made.out["sam"] == dict(rho_max=0.6, rho_min=0.35, alpha=0.5, perturbation="per_device")
  assert port.port(classifier(gsam=gsam, schedule=dict(decay_type="cosine"))).out["sam"]["rho_min"] == 0.1
  clean = port.port(classifier(gsam={**gsam, "minimize_fp": False})).out["sam"]
  assert clean["decompose_against"] == "clean"
  refused = port.port(classifier(gsam={**gsam, "lr_min": 0.05}, schedule=dict(decay_type="cosine")))
  assert row(refused, "gsam").verdict == REFUSED


def test_the_layout_of_older_heads_is_the_newer_one():
  new = classifier()
  old = {key: value for key, value in new.items() if key not in ("input", "total_steps", "ckpt_steps")}
  old |= dict(dataset="cifar10", train_split="train", pp_train=PP, batch_size=8, shuffle_buffer_size=50)
  old |= dict(num_epochs=3, checkpoint_steps=5)
  expected = port.port({**{key: new[key] for key in new if key != "total_steps"}, "total_epochs": 3}).out
  assert port.port(old).out == expected


@pytest.mark.parametrize(
  "name, init, here",
  [
    ("bit_paper", "M-imagenet2012", "BiT-M-R101x3-ILSVRC2012"),
    ("bit_paper", "S", "BiT-S-R101x3"),
    ("bit_paper", "M-run1-cifar", "BiT-M-R101x3-run1-cifar"),
    ("vit", "howto-i21k-B/16", "howto-i21k-B/16"),
    ("vit", "gs://a/b.npz", "gs://a/b.npz"),
    ("vit", "", None),
  ],
)
def test_weights_have_the_names_of_our_catalog(name, init, here):
  model = dict(depth=101, width=3) if name == "bit_paper" else dict(variant="B/16")
  assert port.port(classifier(model_name=name, model=model, model_init=init)).out.get("model_init") == here


@pytest.mark.parametrize("init, here", [(None, "-inf"), ("gs://a/b.npz", "-inf"), ("M-imagenet2012", None)])
def test_bit_paper_pools_as_there_unless_its_weights_are_those_of_bit(init, here):
  config = classifier(model_name="bit_paper", model=dict(depth=50, width=1, scan=True), model_init=init)
  made = port.port(config)
  assert made.out["model"].get("root_padding") == here
  assert row(made, "model.scan").verdict == IDLE


def test_a_mixture_keeps_its_components_and_drops_those_without_weight():
  part = dict(data=dict(name="cifar10", split="train"), pp=PP, prefetch=3)
  given = dict(data=dict(a=0.7, b=0.3, c=0), batch_size=8, a=part, b={**part, "shuffle_buffer_size": 5})
  made = port.port(classifier(input=given))
  assert made.out["input"]["data"] == dict(a=0.7, b=0.3)
  assert "shuffle_buffer_size" not in made.out["input"]
  assert [made.out["input"][name]["shuffle_buffer_size"] for name in "ab"] == [1, 5]
  assert row(made, "input.a.prefetch").verdict == IDLE


@pytest.mark.parametrize("function", [lambda example: True, "<function get_config.<locals>.<lambda> at 0x7f00>"])
def test_a_function_of_python_is_refused_where_a_condition_stands(function):
  config = classifier()
  config["input"]["pre_filter_fn"] = function
  assert row(port.port(config), "input.pre_filter_fn").verdict == REFUSED


@pytest.mark.parametrize("config", [{}, dict(model_name=3), dict(model_name="resnet9000")])
def test_what_is_no_config_of_its_trainers_is_refused_in_a_line(config):
  with pytest.raises(UserError) as refused:
    port.port(config)
  assert "\n" not in str(refused.value)


def test_rules_are_well_formed():
  tables = (rules.KEYS, rules.EVALUATORS, rules.OPS, rules.OPS_TOLD, rules.MODELS, rules.TRANSFORMATIONS)
  for table in tables:
    names = [rule.there for rule in table]
    assert len(names) == len(set(names))
    assert {rule.verdict for rule in table} <= set(VERDICTS)
  assert {rule.verdict for rule in rules.KEYS} == set(VERDICTS)
  for rule in rules.KEYS:
    assert (rule.absent is not None) == rule.there.startswith("no "), rule.there
    assert rule.verdict not in (KEPT, RENAMED) or not rule.there.startswith("no ")


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16])
def test_a_type_of_numbers_is_written_by_its_name(dtype):
  made = port.port(classifier(optax_name="big_vision.momentum_hp", optax=dict(dtype=dtype)))
  assert made.out["optax_name"] == "momentum_hp"
  assert made.out["optax"] == dict(dtype="bfloat16")
