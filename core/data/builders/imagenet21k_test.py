"""ImageNet-21k from tiny archives in the forms of its two releases: labels, lists of classes, damage, metadata."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from core.data import pipeline
from core.data.builders import imagenet21k
from core.data.import_tensorflow import import_tfds
from core.data.source import open_source
from core.errors import UserError
from core.recipe import sources
from core.recipe.input import Input

IDS = ("n02084071", "n01503061", "n04399382")  # Not in order, as in an archive.
PER_CLASS = 4


def encoded(image, kind="JPEG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def picture(shade, mode="RGB"):
  """A flat image: its shade tells where it came from, through every encoding."""
  return Image.new("RGB", (20, 16), (shade,) * 3).convert(mode)


def tar(files, mode="w"):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return file.getvalue()


def class_archive(wordnet_id, row, changed=()):
  files = {f"{wordnet_id}_{n}.JPEG": encoded(picture(60 * row + 10 * n)) for n in range(PER_CLASS)}
  return tar(files | dict(changed))


def archive(changed=(), folder="", ids=IDS):
  """The archive of `ids`; `changed` are other files of the first class."""
  classes = {f"{folder}{each}.tar": class_archive(each, row, () if row else changed) for row, each in enumerate(ids)}
  return {f"{folder}README": b"text", **classes}


def build(tmp_path, config="winter21", **options):
  tfds = import_tfds()
  builder = tfds.builder(f"imagenet21k/{config}", data_dir=tmp_path / "data", **options)
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))
  return builder


def read(tmp_path, config="winter21"):
  """{row of the archive's class: label} and the number of images, through the pipeline that a config takes."""
  data = sources.Tfds(name=f"imagenet21k/{config}", split="full", data_dir=str(tmp_path / "data"))
  pp = "decode|resize(4)|keep('image','label')"
  batches = list(pipeline.eval_batches(data, pp, batch_size=4))
  real = np.concatenate([batch["_mask"] for batch in batches]) > 0
  shade = np.concatenate([batch["image"] for batch in batches])[real].mean(axis=(1, 2, 3))
  label = np.concatenate([batch["label"] for batch in batches])[real]
  return {int(round(s) // 60): int(y) for s, y in zip(shade, label)}, len(label)


@pytest.fixture(scope="module", autouse=True)
def _quiet():
  import_tfds().disable_progress_bar()


def test_winter_21_has_the_sorted_ids_of_its_archive_as_labels(tmp_path):
  (tmp_path / "winter21_whole.tar.gz").write_bytes(tar(archive(folder="winter21_whole/"), "w:gz"))
  builder = build(tmp_path)
  assert builder.info.features["label"].names == sorted(IDS)
  assert read(tmp_path) == ({row: sorted(IDS).index(each) for row, each in enumerate(IDS)}, 12)
  folder = tmp_path / "data/imagenet21k/winter21/1.0.0"
  assert (folder / "label.labels.txt").read_text().split() == sorted(IDS)
  data = sources.Tfds(name="imagenet21k/winter21", split="full", data_dir=str(tmp_path / "data"))
  assert open_source(data, "data").classes == tuple(sorted(IDS))
  assert json.loads((folder / "metadata.json").read_text())["corrupt_images_skipped"] == []


def test_fall_11_has_the_labels_of_the_published_weights(tmp_path):
  (tmp_path / "fall11_whole.tar").write_bytes(tar(archive(ids=IDS[:2])))
  builder = build(tmp_path, "fall11")
  names = builder.info.features["label"].names
  assert builder.info.features["label"].num_classes == 21_843
  found, size = read(tmp_path, "fall11")
  assert {row: names[label] for row, label in found.items()} == dict(enumerate(IDS[:2]))
  assert size == 8
  metadata = json.loads((tmp_path / "data/imagenet21k/fall11/1.0.0/metadata.json").read_text())
  assert len(metadata["classes_without_images"]) == 21_841
  # It is the default: a config's name="imagenet21k" opens it.
  data = sources.Tfds(name="imagenet21k", split="full", data_dir=str(tmp_path / "data"))
  assert pipeline.dataset_size(Input(data=data, batch_size=2)) == 8


def test_the_list_of_fall_11_is_sorted_and_has_the_two_classes_more():
  names = imagenet21k._FALL11_CLASSES.read_text().split()
  assert len(names) == 21_843
  assert names == sorted(set(names))
  assert {"n03931044", "n09859684"} < set(names)
  # Of ImageNet-1k's classes, all but the teddy bear are there.
  labels = import_tfds().builder("imagenet2012").info.features["label"].names
  assert set(labels) - set(names) == {"n04399382"}


def test_a_class_that_the_release_has_not_is_refused(tmp_path):
  (tmp_path / "fall11_whole.tar").write_bytes(tar(archive()))
  with pytest.raises(UserError, match="holds the class n04399382, which is none of the 21843 of its release"):
    build(tmp_path, "fall11")


def test_a_list_beside_the_archive_chooses_and_orders_classes(tmp_path):
  (tmp_path / "winter21_whole.tar.gz").write_bytes(tar(archive(), "w:gz"))
  (tmp_path / "winter21_classes.txt").write_text(f"{IDS[2]}\n{IDS[0]}\nn00000001\n")
  options = imagenet21k.Imagenet21k.options("winter21", tmp_path)
  assert imagenet21k.Imagenet21k.options("fall11", tmp_path) == {}
  builder = build(tmp_path, **options)
  assert builder.info.features["label"].names == [IDS[2], IDS[0], "n00000001"]
  assert read(tmp_path) == ({2: 0, 0: 1}, 8)
  metadata = json.loads((tmp_path / "data/imagenet21k/winter21/1.0.0/metadata.json").read_text())
  assert metadata["classes_left_out"] == [IDS[1]]
  assert metadata["classes_without_images"] == ["n00000001"]


def test_corrupt_images_are_skipped_and_counted_and_odd_ones_made_jpegs(tmp_path):
  noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
  changed = {
    f"{IDS[0]}_0.JPEG": encoded(noise)[:-900],
    f"{IDS[0]}_1.JPEG": b"no image",
    f"{IDS[0]}_7.JPEG": b"",
    f"{IDS[0]}_2.JPEG": encoded(picture(20), "PNG"),
    f"{IDS[0]}_3.JPEG": encoded(picture(30, "CMYK")),
    f"{IDS[0]}_8.JPEG": encoded(picture(40, "L")),
  }
  (tmp_path / "winter21_whole.tar.gz").write_bytes(tar(archive(changed), "w:gz"))
  build(tmp_path)
  found, size = read(tmp_path)
  assert (found[0], size) == (1, 11)
  metadata = json.loads((tmp_path / "data/imagenet21k/winter21/1.0.0/metadata.json").read_text())
  assert metadata["corrupt_images_skipped"] == [f"{IDS[0]}/{IDS[0]}_{n}.JPEG" for n in (0, 1, 7)]
  assert metadata["images_made_jpeg_anew"] == 2


def test_a_sound_jpeg_stays_as_it_is_to_the_last_byte():
  for mode in ("RGB", "L"):
    content = encoded(picture(100, mode))
    assert imagenet21k.as_jpeg(content) is content


def test_the_order_is_the_same_every_time_and_mixes_the_classes(tmp_path):
  labels = []
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "winter21_whole.tar.gz").write_bytes(
      tar(archive(ids=IDS if name == "one" else IDS[::-1]), "w:gz")
    )
    build(tmp_path / name)
    data = sources.Tfds(name="imagenet21k/winter21", split="full", data_dir=str(tmp_path / name / "data"))
    (batch,) = pipeline.eval_batches(data, "keep('label')", batch_size=12)
    labels.append(batch["label"].tolist())
  assert labels[0] == labels[1] != sorted(labels[0])


@pytest.mark.parametrize(
  "content, words",
  [
    (b"no archive", "cannot be read, is it whole"),
    (tar({"README": b"x"}), "holds none of the"),
    (tar(archive())[:9000], "cannot be read, is it whole"),
    (tar(archive(), "w:gz")[:-200], "cannot be read, is it whole"),
  ],
  ids=("no archive", "no classes", "cut short", "compressed and cut short"),
)
def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path, content, words):
  (tmp_path / "winter21_whole.tar.gz").write_bytes(content)
  with pytest.raises(UserError, match=words):
    build(tmp_path, classes=IDS)
  assert not list((tmp_path / "data").rglob("*tfrecord*"))
