"""A folder of images trains as it lies: its layout is understood, its order is fair, its mistakes are named."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from core.data import class_names, pipeline
from core.data.source import open_source
from core.errors import UserError
from core.recipe import sources
from core.recipe.input import Input
from core.recipe.parse import parse

PP = "decode|resize(8)|value_range(-1,1)|onehot(3,key='label',key_result='labels')|keep('image','labels')"
SHADES = {"ant": 20, "bee": 120, "cow": 220}  # An image's shade tells its class: the witness of every label.


def write(root, counts, suffix="jpg"):
  for name, count in counts.items():
    (root / name).mkdir(parents=True, exist_ok=True)
    shade = next((shade for known, shade in SHADES.items() if known in name), 0)
    for number in range(count):
      Image.new("RGB", (9 + number % 3, 10), (shade,) * 3).save(root / name / f"{number}.{suffix}")


@pytest.fixture
def photos(tmp_path):
  write(tmp_path / "photos", {"cow": 20, "ant": 40, "bee": 10})
  return tmp_path / "photos"


def source_of(data):
  return open_source(parse(sources.Source, data), "config.input.data")


def evaluation(data, pp, **kw):
  return pipeline.eval_batches(parse(sources.Source, data), pp, **kw)


def opened(path, split="train", **more):
  return source_of(dict(source="folder", path=str(path), split=split, **more))


def paths(source):
  return [path.decode() for path in source.arrays["image"]]


def refused(line, path, **more):
  with pytest.raises(UserError) as error:
    opened(path, **more)
  assert line in str(error.value)
  assert "\n" not in str(error.value)


def test_labels_are_the_sorted_names_of_the_class_folders(photos):
  source = opened(photos)
  assert source.classes == ("ant", "bee", "cow")
  assert np.bincount(source.arrays["label"]).tolist() == [40, 10, 20]
  for path, label in zip(paths(source), source.arrays["label"]):
    assert path.split("/")[-2] == source.classes[label]
  assert source.describe(3) == paths(source)[3]
  assert paths(opened(photos, "all")) == paths(source)


@pytest.mark.parametrize("cut", [10, 50, 90])
def test_every_part_has_its_share_of_every_class(photos, cut):
  low, high = opened(photos, f"train[:{cut}%]"), opened(photos, f"train[{cut}%:]")
  share = np.bincount(low.arrays["label"], minlength=3) / [40, 10, 20]
  assert np.abs(share - cut / 100).max() <= 0.5 / 10
  assert sorted(paths(low) + paths(high)) == sorted(paths(opened(photos)))
  assert paths(low) + paths(high) == paths(opened(photos))


def test_the_order_within_a_class_is_not_that_of_the_names(photos):
  ants = [path for path in paths(opened(photos)) if "/ant/" in path]
  assert ants != sorted(ants)


def test_folders_of_class_folders_are_splits(tmp_path):
  write(tmp_path / "train", {"ant": 3, "bee": 3})
  write(tmp_path / "val", {"bee": 2})
  (tmp_path / "test" / "unknown").mkdir(parents=True)  # What a run does not read need not be in order.
  assert len(opened(tmp_path)) == 6
  val = opened(tmp_path, "val[:50%]+val[50%:]")
  assert val.classes == ("ant", "bee")
  assert val.arrays["label"].tolist() == [1, 1]
  refused("there is no split 'vla' (did you mean 'val'?)", tmp_path, split="vla")
  refused("test/unknown: 'unknown' is none of the 2 classes", tmp_path, split="test")


def test_a_list_or_file_of_classes_orders_them(photos):
  assert opened(photos, classes=["cow", "bee", "ant", "dog"]).classes == ("cow", "bee", "ant", "dog")
  (photos / "classes.txt").write_text("bee\nant\n\ncow\n")
  source = opened(photos, classes="classes.txt")
  assert np.bincount(source.arrays["label"]).tolist() == [10, 40, 20]
  refused("'cow' is none of the 3 classes (did you mean 'cows'?)", photos, classes=["ant", "bee", "cows"])
  refused("holds 'ant' more than once", photos, classes=["ant", "bee", "ant"])
  refused(f"classes: no file {photos}/none.txt", photos, classes="none.txt")
  refused("config.input.data.classes holds no name", photos, classes=[])


def test_what_is_no_image_is_skipped_and_told_once(photos, capsys):
  (photos / "ant" / "notes.md").write_text("x")
  (photos / "ant" / ".DS_Store").write_text("x")
  (photos / ".git" / "cow").mkdir(parents=True)
  (photos / "README.md").write_text("x")
  assert len(opened(photos)) == len(opened(photos)) == 70
  (line,) = capsys.readouterr().err.splitlines()
  assert line.endswith("ant/notes.md")


def test_mistakes_in_a_folder_are_named(photos, tmp_path):
  refused("no folder nowhere", "nowhere")
  (tmp_path / "empty").mkdir()
  refused("holds no folders; images of a class lie in a folder of its name", tmp_path / "empty")
  (photos / "dog").mkdir()
  refused("photos/dog holds no images", photos)
  (photos / "dog" / "a.heic").write_bytes(b"RIFF")
  refused("dog/a.heic: no format that is read", photos)
  (photos / "dog").rename(photos / "zebra")
  (photos / "zebra" / "more").mkdir()
  (photos / "zebra" / "a.heic").unlink()
  refused("ant holds images, zebra holds folders", photos)
  Image.new("RGB", (4, 4)).save(photos / "0.png")
  (photos / "zebra" / "more").rmdir()
  refused("photos/0.png lies in no class's folder; put it into one", photos)


def test_a_stray_image_makes_no_class_of_a_split(tmp_path):
  write(tmp_path / "train", {"ant": 2, "bee": 2})
  Image.new("RGB", (4, 4)).save(tmp_path / "train" / "cover.png")
  refused("train/cover.png lies beside folders of images; if train is a split, put it into one of them", tmp_path)
  write(tmp_path, {"test": 2})  # Images without labels.
  refused("train/cover.png lies beside folders of images", tmp_path, split="test")


def test_a_class_may_have_folders_of_its_own_beside_its_images(tmp_path):
  write(tmp_path, {"ant": 2, "ant/winged": 3, "bee": 2})
  source = opened(tmp_path)
  assert (source.classes, np.bincount(source.arrays["label"]).tolist()) == (("ant", "bee"), [5, 2])


def test_what_is_no_regular_file_is_refused_and_not_waited_for(photos):
  os.mkfifo(photos / "ant" / "pipe.jpg")
  refused("ant/pipe.jpg: no regular file", photos)
  (photos / "ant" / "pipe.jpg").unlink()
  (photos / "ant" / "gone.jpg").symlink_to("nowhere")
  refused("ant/gone.jpg: no regular file", photos)
  (photos / "ant" / "gone.jpg").unlink()
  os.mkfifo(photos / "ant" / "pipe")  # By name no image, it is skipped.
  assert len(opened(photos)) == 70


def test_links_are_followed_and_one_that_leads_back_is_refused(photos, tmp_path):
  (tmp_path / "more").mkdir()
  Image.new("RGB", (4, 4)).save(tmp_path / "more" / "linked.png")
  (photos / "ant" / "more").symlink_to(tmp_path / "more")
  assert len(opened(photos)) == 71
  (photos / "ant" / "back").symlink_to(photos / "ant")
  refused("back cannot be read (Too many levels of symbolic links)", photos)


def test_folders_of_whole_numbers_are_labelled_by_their_values(tmp_path):
  write(tmp_path, {str(number): 1 for number in (0, 1, 2, 9, 10, 11, 100)})
  source = opened(tmp_path)
  assert source.classes == ("0", "1", "2", "9", "10", "11", "100")
  assert all(source.classes[label] == path.split("/")[-2] for path, label in zip(paths(source), source.arrays["label"]))


def test_a_folder_trains_without_a_builder(photos):
  config = dict(data=dict(source="folder", path=str(photos), split="train[:90%]"), batch_size=8, pp=PP)
  batches = pipeline.train_batches(parse(Input, config), seed=0, start_step=0)
  seen = 0
  for _ in range(12):
    batch = next(batches)
    assert batch["image"].shape == (8, 8, 8, 3)
    shade = (batch["image"].mean(axis=(1, 2, 3)) + 1) * 127.5
    np.testing.assert_allclose(shade, np.take(list(SHADES.values()), batch["labels"].argmax(1)), atol=2)
    seen += len(shade)
  batches.close()
  val = evaluation(dict(config["data"], split="train[90%:]"), PP, batch_size=4)
  assert val.num_examples + pipeline.dataset_size(parse(Input, config)) == 70
  assert sum(batch["_mask"].sum() for batch in val) == val.num_examples


def test_more_classes_than_the_config_says_are_refused(photos):
  write(photos, {"dog": 5})
  config = dict(data=dict(source="folder", path=str(photos)), batch_size=75, pp=PP)
  batches = pipeline.train_batches(parse(Input, config), seed=0, start_step=0)
  with pytest.raises(UserError, match=r"dog/\d\.jpg cannot be made an example.*labels outside \[0, 3\)"):
    next(batches)
  batches.close()


def jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return dict(source="jsonl", path=str(path))


def test_jsonl_labels_may_be_names_of_classes(photos):
  rows = [{"image": f"{name}/{n}.jpg", "label": name} for n in range(8) for name in ("cow", "ant", "bee")]
  data = jsonl(photos / "train.jsonl", rows)
  val = jsonl(photos / "val.jsonl", rows[2:3])
  (photos / "classes.txt").write_text("ant\nbee\ncow\n")
  for classes in ("train.jsonl", "classes.txt", ["ant", "bee", "cow"]):
    source = source_of(data | dict(classes=classes))
    assert source.classes == ("ant", "bee", "cow")
    assert source.arrays["label"][:3].tolist() == [2, 0, 1]
    assert source_of(val | dict(classes=classes)).arrays["label"].tolist() == [1]
  config = dict(data=data | dict(classes="train.jsonl"), batch_size=6, pp=PP)
  batches = pipeline.train_batches(parse(Input, config), seed=0, start_step=0)
  batch = next(batches)
  shade = (batch["image"].mean(axis=(1, 2, 3)) + 1) * 127.5
  np.testing.assert_allclose(shade, np.take(list(SHADES.values()), batch["labels"].argmax(1)), atol=2)
  batches.close()


def test_names_are_cut_at_line_feeds_alone_and_files_may_begin_with_a_mark(tmp_path):
  rows = [{"x": 1.0, "label": "b\x85\u2028"}, {"x": 2.0, "label": "a"}]
  text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
  (tmp_path / "t.jsonl").write_bytes(f"\ufeff{text}".encode())
  (tmp_path / "names.txt").write_bytes("\ufeffa\r\nb\x85\u2028c\r\nb\x0cd".encode())
  source = source_of(dict(source="jsonl", path=str(tmp_path / "t.jsonl"), classes="t.jsonl"))
  assert (source.classes, source.arrays["label"].tolist()) == (("a", "b\x85\u2028"), [1, 0])
  assert class_names.read("names.txt", tmp_path, "x") == ("a", "b\x85\u2028c", "b\x0cd")


def test_jsonl_lists_of_names_become_several_labels(tmp_path):
  rows = [{"x": 1.0, "tags": ["b", "a"]}, {"x": 2.0, "tags": []}, {"x": 3.0, "tags": ["c"]}]
  data = jsonl(tmp_path / "t.jsonl", rows) | dict(classes="t.jsonl", label_key="tags")
  source = source_of(data)
  assert source.classes == ("a", "b", "c")
  assert source.arrays["tags"].tolist() == [[1, 0], [-1, -1], [2, -1]]
  (batch,) = evaluation(data, "onehot(3, key='tags')", batch_size=3)
  assert batch["tags"].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_jsonl_names_that_are_no_class_are_refused_by_line(tmp_path):
  rows = [{"x": 1.0, "label": "cat"}, {"x": 2.0, "label": "dgo"}]
  data = jsonl(tmp_path / "t.jsonl", rows)
  with pytest.raises(UserError, match=r"line 2: 'label': 'dgo' is none of the 2 classes \(did you mean 'dog'\?\)"):
    source_of(data | dict(classes=["cat", "dog"]))
  with pytest.raises(UserError, match="label_key='lable' is no key of its lines"):
    source_of(data | dict(classes=["cat", "dog"], label_key="lable"))
  with pytest.raises(UserError, match=r"line 1: 'x' holds 1\.0; with classes="):
    source_of(data | dict(classes=["cat", "dog"], label_key="x"))
  with pytest.raises(UserError, match="'label' holds text; labels are integers"):
    evaluation(data, "onehot(3, key='label')", batch_size=2)
  images = jsonl(tmp_path / "i.jsonl", [{"image": "a.jpg", "label": "cat"}])
  with pytest.raises(UserError, match="'label' holds text; labels are integers"):
    pipeline.train_batches(parse(Input, dict(data=images, batch_size=2, pp=PP)), seed=0, start_step=0)
