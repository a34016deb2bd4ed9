"""Each evaluator's options are read as they are meant, and every other value at every key is one line with its path."""

import dataclasses

import pytest

from core.errors import UserError
from core.recipe import annotations, words
from core.recipe.evaluators import EVALUATORS, Evaluator
from core.recipe.evaluators_base import ImageText, StudentTeacher
from core.recipe.evaluators_image_text import DATASETS, ZeroshotDataset
from core.recipe.evaluators_transfer import TransferDataset
from core.recipe.parse import parse
from core.recipe.sources import Digits, Tfds

PATH = "config.evals.test"
DATA = dict(name="digits", split="test")
ONE = dict(data=DATA, pp_fn="keep('image')")
SIDES = dict(pp_img="value_range(-1,1)", pp_txt="lower")
TRANSFER = dict(datasets=dict(digits=dict(train=DATA, test=DATA)), pp_train="", pp_eval="")
# What each type needs.
NEEDED = {
  "retrieval": dict(data=DATA, **SIDES),
  "zeroshot": dict(dataset_names="digits", **SIDES),
  "fewshot": TRANSFER,
  "knn": TRANSFER,
}
TYPES = ["agreement", "classification", "contrastive", "fewshot", "knn", "mean", "retrieval", "save", "sharpness"]
TYPES += ["zeroshot"]

VALUES = {
  "None": None,
  "True": True,
  "0": 0,
  "3": 3,
  "-1": -1,
  "huge": 2**70,
  "0.5": 0.5,
  "nan": float("nan"),
  "inf": float("inf"),
  "empty text": "",
  "text": "text",
  "regex": "(x",
  "NUL": "a\0b",
  "_id": "_id",
  "surrogate": "a\ud800",
  "folder": "a/b.csv",
  "bytes": b"text",
  "[]": [],
  "[3]": [3],
  "[0]": [0],
  "[nan]": [float("nan")],
  "[text]": ["text"],
  "[None]": [None],
  "{}": {},
  "{text: text}": {"text": "text"},
  "{text: 3}": {"text": 3},
  "{3: text}": {3: "text"},
  "object": object(),
}
KEY = {"text", "regex", "NUL", "folder"}
TEXT = KEY | {"_id"}
PP = {"empty text", "text", "_id"}
DICTS = {"{}", "{text: text}", "{text: 3}"}
TEXTS = TEXT | {"[text]"}
BOOL = {"True"}
COUNT = {"3"}
COUNTS = {"3", "[3]"}
POSITIVE = {"3", "0.5", "huge"}
NUMBER = POSITIVE | {"None", "0"}
# Which of them each key takes, by its name; some types differ.
TAKES = {
  "pred": TEXT | {"{text: text}"},
  "pred_kw": DICTS,
  "prefix": {"None", "empty text"} | (TEXT - {"NUL"}),
  "first": BOOL,
  "log_steps": NUMBER - {"0"},
  "log_examples": NUMBER - {"0"},
  "log_epochs": NUMBER - {"0"},
  "log_percent": {"None", "0.5"},
  "batch_size": {"None"} | COUNT,
  "cache": {"None"} | BOOL,
  "data": set(),
  "pp_fn": PP,
  "pp_img": PP,
  "pp_txt": PP,
  "pp_train": PP,
  "pp_eval": PP,
  "loss_name": set(),
  "label_key": KEY,
  "classes": {"None", "[3]", "[0]"},
  "per_class": BOOL,
  "outputs": {"empty text", "text", "NUL", "folder", "_id", "[text]"},
  "outfile": set(),
  "layer": {"None"} | TEXT,
  "distances": {"[]"},
  "rho": POSITIVE,
  "tolerance": POSITIVE,
  "max_iterations": COUNT,
  "seed": {"0", "3"},
  "datasets": set(),
  "representation_layer": {"None"} | TEXTS,
  "pool": {"None"},
  "shots": COUNTS,
  "l2_reg": POSITIVE | {"[3]"},
  "num_seeds": COUNT,
  "display_first": {"[]"},
  "k": COUNTS,
  "temperature": POSITIVE,
  "weights": set(),
  "txt_name": {"None"} | TEXTS,
  "captions_per_image": {"None"} | COUNT,
  "skip_empty": BOOL,
  "same_text_counts": BOOL,
  "dataset_names": set(),
  "class_names": {"None"} | TEXTS,
  "templates": {"None"} | TEXTS,
  "canonicalize": BOOL,
  "first_class_name_only": BOOL,
}
TAKES_OF = {
  ("agreement", "pred"): set(),
  ("retrieval", "pred"): set(),
  ("zeroshot", "pred"): set(),
  ("zeroshot", "datasets"): {"{}"},
}


def entry(kind, **options):
  return dict(type=kind, **NEEDED.get(kind, ONE)) | options


def read(kind, **options):
  return parse(Evaluator, entry(kind, **options), PATH)


def keys():
  return [(kind, key) for kind in TYPES for key in annotations.keys_of(EVALUATORS[kind])]


@pytest.mark.parametrize("kind, key", keys())
def test_every_other_value_at_every_key_is_one_line_with_its_path(kind, key):
  taken = set()
  for name, value in VALUES.items():
    try:
      read(kind, **{key: value})
      taken.add(name)
    except UserError as error:
      line = str(error)
      assert line.startswith((f"{PATH}.{key} ", f"{PATH}.{key}.", f"{PATH}.{key}[", f"{PATH}.{key}:")), name
      assert len(line) <= 300
      assert "\n" not in line
  assert taken == TAKES_OF.get((kind, key), TAKES[key])


@pytest.mark.parametrize("kind", TYPES)
def test_an_unknown_key_is_refused_with_the_nearest(kind):
  with pytest.raises(UserError, match=rf"^{PATH}.batch_sise is no key of the evaluator {kind} .*'batch_size'"):
    read(kind, batch_sise=3)


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_needed_is_asked_for_by_its_path(kind):
  for key in NEEDED.get(kind, ONE):
    if key != "dataset_names":
      with pytest.raises(UserError, match=rf"^{PATH}.{key} is missing; it is "):
        parse(Evaluator, {name: value for name, value in entry(kind).items() if name != key}, PATH)


@pytest.mark.parametrize("kind", [*dict.fromkeys(EVALUATORS.values()), ZeroshotDataset, TransferDataset])
def test_every_key_is_documented(kind):
  documented = words.documentation(kind)
  for field in dataclasses.fields(kind):
    assert documented[field.name].split(". ")[0], field.name


def test_published_names_are_ours():
  assert set(EVALUATORS) - set(TYPES) == {
    "fewshot_lsr",
    "proj.image_text.contrastive",
    "proj.image_text.retrieval",
    "proj.image_text.discriminative_classifier",
  }
  first = {kind: name for name, kind in reversed(EVALUATORS.items())}
  assert sorted(first.values()) == TYPES
  assert type(parse(Evaluator, ONE, PATH)) is EVALUATORS["classification"]


def test_predictions_go_by_the_side_that_they_are_of():
  assert read("mean").predictions() == {"predict": "predict"}
  assert read("contrastive").predictions() == {"predict": "contrastive"}
  assert read("retrieval").pred == ImageText(image="image", text="text")
  for kind in ("retrieval", "zeroshot"):
    ours = {"predict_image": "image", "predict_text": "text"}
    assert read(kind).predictions() == read(kind, pred="predict").predictions() == ours
  found = read("agreement", pred=dict(student="a", teacher="b"))
  assert found.pred == StudentTeacher(student="a", teacher="b")
  assert found.predictions() == {"predict_student": "a", "predict_teacher": "b"}


@pytest.mark.parametrize(
  "kind, options, line",
  [
    ("classification", dict(classes=[1, 2, 1]), "classes must be .*, got .1, 2, 1.: it names 1 more than once"),
    (
      "classification",
      dict(per_class="a/b.csv"),
      "per_class must be the name of a .csv or .json file, got",
    ),
    ("classification", dict(per_class=".csv"), "per_class must be "),
    ("classification", dict(per_class="a" * 300 + ".csv"), "per_class must be "),
    ("classification", dict(pp_fn="decode("), "pp_fn must be ops joined by .*pp string cannot be read"),
    ("classification", dict(data=dict(name="digits", split="test[")), "data.split must be "),
    ("classification", dict(data=dict(name="digits", splt="test")), "data.splt is no key of the source digits"),
    ("classification", dict(pred={}), "pred must be a prediction, or a dict of at least one by label, got {}"),
    ("classification", dict(pred={"../a": "b"}), "pred has the label '../a', which cannot be the name of a folder"),
    ("classification", dict(log_steps=1, log_epochs=1), " log_steps and log_epochs are both set; keep one of them"),
    ("agreement", dict(layer=dict(student="a")), "layer.teacher is missing; it is the layer of the teacher"),
    ("agreement", dict(layer=dict(student="a", teacher=3)), "layer.teacher must be text that is not empty, got 3"),
    ("retrieval", dict(pred=dict(image="image")), "pred.text is missing; it is the prediction that embeds texts"),
    ("save", dict(outputs=["output", "(x"]), "outputs.1. must be a regular expression, got '.x': missing"),
    ("save", dict(outfile="b.npy"), "outfile must be the name of a .npz file, got 'b.npy': it must end in .npz"),
    ("sharpness", dict(seed=2**31), "seed must be a whole number in .0, 2147483647., got 2147483648"),
    ("fewshot", dict(display_first=[("a", 1.5)]), "display_first.0..1. must be a whole number from 1 on, got 1.5"),
    ("fewshot", dict(datasets=dict(x=("a", "train"))), "datasets.x must be "),
    ("fewshot", dict(datasets=dict(x=dict(train=DATA))), "datasets.x.test is missing; it is the test split .a dict."),
    ("knn", dict(k=[1, 0]), "k.1. must be a whole number from 1 on, got 0"),
    ("knn", dict(k=[10, 20, 10]), "k must be a list of at least one, .*: it names 10 more than once"),
    ("knn", dict(weights="uniform", temperature=0.1), "temperature is of no effect where weights='uniform'; leave it"),
    ("fewshot", dict(shots=[1, 1]), "shots must be a list of at least one, got .1, 1."),
    ("save", dict(outputs=["output", "output"]), "outputs must be .*: it names 'output' more than once"),
    ("classification", dict(log_percent=0), "log_percent must be above 0; leave it out to evaluate after the last st"),
    ("knn", dict(temperature=0), "temperature must be a number from 1e-30 on, got 0"),
    ("zeroshot", dict(dataset_names=[]), "dataset_names must name a data set where datasets has none"),
    ("zeroshot", dict(dataset_names="imagenet2021"), "dataset_names names no data set 'imagenet2021' .*'imagenet2012'"),
    ("zeroshot", dict(datasets=dict(a={})), "datasets.a.data is missing; it is where the data set is"),
    ("zeroshot", dict(datasets=dict(digits=dict(lable_key="x"))), "datasets.digits.lable_key is no key .*'label_key'"),
    (
      "zeroshot",
      dict(datasets=dict(digits=dict(templates="digits")), templates="cifar"),
      "templates is of no effect: every data set of datasets has its own",
    ),
    (
      "zeroshot",
      dict(datasets=dict(digits=dict(class_names="digits")), class_names="cifar10"),
      "class_names is of no effect: every data set of datasets has its own",
    ),
    ("zeroshot", dict(class_names=["a", ["b", 3]]), "class_names.1..1. must be text that is not empty, got 3"),
  ],
)
def test_a_mistake_is_one_line_that_begins_with_its_path(kind, options, line):
  with pytest.raises(UserError, match=r"^config\.evals\.test[.:]" + line) as refused:
    read(kind, **options)
  assert len(str(refused.value)) <= 300


def test_data_sets_by_name_take_what_is_theirs_then_what_is_everyones():
  own = dict(digits=dict(templates="name"), mine=dict(data=DATA, label_key="labels", pp_img=""))
  sets = read("zeroshot", dataset_names=["mnist", "digits"], datasets=own, class_names="imagenet").sets()
  assert list(sets) == ["mnist", "digits", "mine"]
  assert sets["mnist"].data == Tfds(name="mnist", split="test")
  assert {each.class_names for each in sets.values()} == {"imagenet"}
  assert (sets["mnist"].templates, sets["digits"].templates, sets["mine"].templates) == ("digits", "name", None)
  assert sets["mine"].data == Digits(split="test")
  assert (sets["mine"].label_key, sets["digits"].label_key) == ("labels", "label")
  assert (sets["mine"].pp_img, sets["digits"].pp_img) == ("", SIDES["pp_img"])
  assert {each.pp_txt for each in sets.values()} == {SIDES["pp_txt"]}
  (real,) = read("zeroshot", dataset_names="imagenet2012_real").sets().values()
  assert (real.label_key, real.several_labels, real.class_names) == ("real_label", True, "imagenet")
  assert DATASETS["digits"].data == Digits(split="test")
