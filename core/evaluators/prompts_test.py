"""Class names are TFDS's own in its order; prompts are what CLIP's authors describe, and mistakes in them one line."""

import json

import numpy as np
import pytest

from core.errors import UserError
from core.evaluators import prompts
from core.recipe.evaluators_image_text import DATASETS


@pytest.mark.parametrize("name", ["oxford_iiit_pet", "food101", "dtd", "oxford_flowers102", "cars196"])
def test_class_names_have_the_order_of_the_labels_in_tfds(name):
  import tensorflow_datasets as tfds

  names = tfds.builder(name).info.features["label"].names
  assert [each for (each,) in prompts.read_classes(name, "x")] == [each.replace("_", " ") for each in names]


def test_imagenets_names_follow_the_wordnet_ids():
  # Of https://image-net.org/challenges/LSVRC/2012/browse-synsets, sorted by id: n01440764, n02099601, ...
  names = [each for (each,) in prompts.read_classes("imagenet", "x")]
  assert len(names) == 1000
  found = {label: names[label] for label in (0, 207, 281, 388, 999)}
  assert found == {0: "tench", 207: "Golden Retriever", 281: "tabby cat", 388: "giant panda", 999: "toilet paper"}


def test_the_labels_of_cifar100_are_in_alphabetical_order():
  names = [each for (each,) in prompts.read_classes("cifar100", "x")]
  assert len(names) == 100
  assert names == sorted(names)


def test_the_published_sets_of_templates_have_their_sizes():
  sizes = {name: len(prompts.read_templates(name, "x")) for name in ("imagenet", "imagenet_best", "cifar", "name")}
  assert sizes == {"imagenet": 80, "imagenet_best": 7, "cifar": 18, "name": 1}


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_has_names_and_templates(name):
  known = DATASETS[name]
  assert len(prompts.read_classes(known.class_names, "x")) > 5
  assert prompts.read_templates(known.templates, "x")


def test_every_name_goes_into_every_template():
  classes = prompts.read_classes(["tench", ["Maine Coon", "coon-cat"]], "x")
  written, class_of = prompts.write(classes, prompts.read_templates(["a {}.", "the {}!"], "x"))
  assert written == ["a tench.", "the tench!", "a Maine Coon.", "the Maine Coon!", "a coon-cat.", "the coon-cat!"]
  assert class_of.tolist() == [0, 0, 1, 1, 1, 1]
  assert prompts.write(classes, ("The  {}.",), canonicalize=True)[0] == ["the tench", "the maine coon", "the cooncat"]


def test_names_and_templates_may_be_in_files(tmp_path):
  (tmp_path / "names.txt").write_text("cat\n\ndog \n", encoding="utf-8")
  (tmp_path / "names.json").write_text(json.dumps({"classes": ["Käfer", ["dog", "hound"]]}), encoding="utf-8")
  (tmp_path / "templates.json").write_text(json.dumps(["a {}"]))
  assert prompts.read_classes(str(tmp_path / "names.txt"), "x") == (("cat",), ("dog",))
  assert prompts.read_classes(str(tmp_path / "names.json"), "x") == (("Käfer",), ("dog", "hound"))
  assert prompts.read_templates(str(tmp_path / "templates.json"), "x") == ("a {}",)
  assert prompts.read_templates("the {}", "x") == ("the {}",)


def test_an_ensemble_is_the_normalized_mean_of_normalized_embeddings():
  z = np.random.default_rng(0).normal(size=(5, 3))
  class_of = np.array([0, 1, 0, 1, 1])
  units = [row / np.sqrt((row**2).sum()) for row in z]
  want = [np.mean([units[i] for i in members], axis=0) for members in ([0, 2], [1, 3, 4])]
  want = [row / np.sqrt((row**2).sum()) for row in want]
  np.testing.assert_allclose(prompts.ensemble(z.astype(np.float32), class_of), want, rtol=1e-6)


@pytest.mark.parametrize(
  "given, words",
  [
    ("imagnet", "'imagnet' is no file and no name .did you mean 'imagenet'"),
    ([], "x must be a list of names"),
    (["cat", " "], "class 1 is ' ', which is no name"),
    (["cat", []], "class 1 is"),
    ("x" * 5_000, "x: 'xxx.* is no file and no name"),
    ("~nobody-of-this-name/x", "is no file and no name"),
    ("a\0b", "is no file and no name"),
    (["cat", 3], "class 1 is 3"),
    (7, "x must be a list of names, a file of them, or one of cars196"),
  ],
)
def test_what_is_no_list_of_names_is_refused(given, words):
  with pytest.raises(UserError, match=words) as refused:
    prompts.read_classes(given, "x")
  assert len(str(refused.value)) <= 300


@pytest.mark.parametrize(
  "given, words",
  [
    (["a photo"], "'a photo' must have one {}, the place of the class's name"),
    (["{} and {}"], "must have one {}"),
    ("x" * 5_000, "x: 'xxx.* is no file and no name"),
    ([], "x must be a list like"),
    ("imagenet_bets", "did you mean 'imagenet_best'"),
  ],
)
def test_what_is_no_template_is_refused(given, words):
  with pytest.raises(UserError, match=words) as refused:
    prompts.read_templates(given, "x")
  assert len(str(refused.value)) <= 300


def test_files_that_cannot_be_read_are_named(tmp_path):
  (tmp_path / "latin.txt").write_bytes("Käfer".encode("latin-1"))
  (tmp_path / "half.json").write_text('["cat"')
  with pytest.raises(UserError, match=r"x: .*latin\.txt line 1 is not UTF-8"):
    prompts.read_classes(str(tmp_path / "latin.txt"), "x")
  with pytest.raises(UserError, match=r"x: .*half\.json is not JSON"):
    prompts.read_classes(str(tmp_path / "half.json"), "x")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_are_cut_at_line_feeds_alone_and_may_begin_with_a_mark(tmp_path, end):
  (tmp_path / "names.txt").write_bytes(f"\ufeffa cat\u2028on a mat{end}{end}a\x0cdog{end}".encode())
  assert prompts.read_classes(str(tmp_path / "names.txt"), "x") == (("a cat\u2028on a mat",), ("a\x0cdog",))
  (tmp_path / "templates.txt").write_bytes(f"\ufeffa\x85{{}}{end}b {{}}".encode())
  assert prompts.read_templates(str(tmp_path / "templates.txt"), "x") == ("a\x85{}", "b {}")
  (tmp_path / "names.json").write_bytes(f'\ufeff{{"classes":{end} ["a\u2028b", "c"]}}'.encode())
  assert prompts.read_classes(str(tmp_path / "names.json"), "x") == (("a\u2028b",), ("c",))
