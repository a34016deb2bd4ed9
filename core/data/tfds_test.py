"""What a prepared dataset's own files may name: features of TFDS and of this repository, nothing else."""

import json
import os

import pytest

from core.data.import_tensorflow import import_tfds
from core.data.source import open_source
from core.errors import UserError
from core.recipe import sources
from core.testing import tiny_tfds


@pytest.fixture
def folder(tmp_path):
  tfds = import_tfds()
  features = tfds.features.FeaturesDict({"label": tfds.features.ClassLabel(num_classes=3)})
  return tiny_tfds.write(tmp_path / "data", "tiny", features, {"train": [[{"label": 1}, {"label": 2}]]})


def opened(folder):
  return open_source(sources.Tfds(name="tiny", split="train", data_dir=str(folder.parents[1])), "config.input.data")


def test_features_of_tfds_are_read(folder):
  source = opened(folder)
  assert (len(source), source.classes) == (2, ("0", "1", "2"))


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("inner", [False, True])
def test_a_class_of_others_is_refused_and_not_imported(folder, tmp_path, monkeypatch, key, inner):
  (tmp_path / "foreign_features.py").write_text(
    "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  file = folder / "features.json"
  written = json.loads(file.read_text())
  named = written["featuresDict"]["features"]["label"] if inner else written
  named.pop("pythonClassName")
  named |= {key: "foreign_features.Feature"} | ({"content": {}} if key == "type" else {})
  file.write_text(json.dumps(written))
  with pytest.raises(UserError, match=r"^config\.input\.data\.name: .*'tiny' cannot be opened") as error:
    opened(folder)
  if key != "type" or not inner:  # An old form, that TFDS does not read within the new one.
    assert "'foreign_features.Feature', no class of TFDS or of this repository" in str(error.value)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("pattern", ["*.tfrecord*", "features.json"])
def test_a_file_of_a_dataset_that_is_no_regular_file_is_refused_and_not_waited_for(folder, pattern):
  (file,) = folder.glob(pattern)
  file.unlink()
  os.mkfifo(file)
  with pytest.raises(UserError, match=r"^config\.input\.data\.name: .*no regular file"):
    opened(folder)
