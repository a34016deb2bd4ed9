"""The saved rows are those of NumPy in the order of the split, and the file is whole or not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from core.evaluators import save_outputs
from core.testing import linear_classifier

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.


def evaluator(folder, predict=linear_classifier.predict, **options):
  config = dict(
    type="save", data=dict(name="digits", split="test"), pp_fn=linear_classifier.IMAGES_AND_LABELS, batch_size=104
  )
  return linear_classifier.evaluator(config | options, predict, output_dir=folder)


def load(path):
  with np.load(path, allow_pickle=False) as archive:
    return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize("batch_size", [8, 104, 512])
def test_rows_stand_in_the_order_of_the_split(tmp_path, batch_size):
  outputs = ["output", "encoder/.*rows", "batch/label", "pre_.*"]
  found = evaluator(tmp_path, outputs=outputs, batch_size=batch_size).run(linear_classifier.variables())
  assert found == {"examples": 360.0}
  saved = load(tmp_path / "test" / "outputs.npz")
  images = linear_classifier.images("test")
  assert set(saved) == {"_id", "output", "encoder/block00/rows", "batch/label", "pre_logits"}
  np.testing.assert_array_equal(saved["_id"], np.arange(360))
  assert saved["_id"].dtype == np.int64
  np.testing.assert_array_equal(saved["batch/label"], linear_classifier.labels("test"))
  np.testing.assert_allclose(saved["pre_logits"], images, rtol=1e-6)
  np.testing.assert_allclose(saved["encoder/block00/rows"], images.reshape(-1, 8, 8), rtol=1e-6)
  np.testing.assert_allclose(
    saved["output"], images @ linear_classifier.PARAMS["w"].astype(np.float64), rtol=1e-4, atol=1e-5
  )
  assert [path.name for path in (tmp_path / "test").iterdir()] == ["outputs.npz"]


def test_saving_again_replaces_the_file_with_the_same_bytes(tmp_path):
  evaluation = evaluator(tmp_path, outfile="logits.npz")
  evaluation.run(linear_classifier.variables())
  first = (tmp_path / "test" / "logits.npz").read_bytes()
  evaluation.run(linear_classifier.variables())
  assert (tmp_path / "test" / "logits.npz").read_bytes() == first


def test_outputs_of_every_type_and_shape(tmp_path):
  def predict(variables, batch):
    label = batch["label"]
    return {"whole": label, "truth": label > 4, "half": label.astype(jnp.bfloat16), "deep": jnp.ones((104, 1, 2, 3))}

  evaluator(tmp_path, predict=lambda *args: (predict(*args),), outputs="output/.*").run(linear_classifier.variables())
  saved, labels = load(tmp_path / "test" / "outputs.npz"), linear_classifier.labels("test")
  np.testing.assert_array_equal(saved["output/whole"], labels)
  np.testing.assert_array_equal(saved["output/truth"], labels > 4)
  np.testing.assert_array_equal(saved["output/half"], labels)
  assert saved["output/half"].dtype == np.float32
  assert saved["output/deep"].shape == (360, 1, 2, 3)


def test_rows_of_several_processes_find_their_places(tmp_path):
  # A batch of two processes holds a run of rows of each, and the last ones are padded.
  values = np.arange(20, dtype=np.float32).reshape(10, 2)
  with save_outputs._Rows(tmp_path / "x.npz", 10) as rows:
    for ids in ([0, 1, 2, 6, 7, 8], [3, 4, 5, 9], []):
      rows.write(np.array(ids, np.int32), {"x": values[np.array(ids, int)]})
    rows.finish()
  saved = load(tmp_path / "x.npz")
  np.testing.assert_array_equal(saved["x"], values)
  np.testing.assert_array_equal(saved["_id"], np.arange(10))


def test_the_file_of_before_stays_when_an_evaluation_does_not_finish(tmp_path, monkeypatch):
  path = tmp_path / "test" / "outputs.npz"
  evaluation = evaluator(tmp_path)
  assert evaluation.run(linear_classifier.variables(), interrupted=lambda: True) is None
  assert list(path.parent.iterdir()) == []
  evaluation.run(linear_classifier.variables())
  first = path.read_bytes()
  calls = iter([False, False, True])
  assert evaluation.run(linear_classifier.variables(), interrupted=lambda: next(calls)) is None
  monkeypatch.setattr(save_outputs._Rows, "write", full_disk)
  with pytest.raises(OSError, match="No space left"):
    evaluation.run(linear_classifier.variables())
  assert path.read_bytes() == first
  assert list(path.parent.iterdir()) == [path]


def full_disk(*_):
  raise OSError("No space left on device")


@pytest.mark.parametrize(
  "options, words",
  [
    (
      dict(outfile="a/b.npz"),
      ".outfile must be the name of a .npz file, got 'a/b.npz': it names no folder",
    ),
    (dict(outfile="b.npy"), ".outfile must be the name of a .npz file"),
    (dict(outputs="(x"), r".outputs must be a regular expression, got '\(x'"),
    (
      dict(outputs=["output", "(x"]),
      r".outputs\[1\] must be a regular expression, got '\(x': missing",
    ),
    (dict(outputs=()), ".outputs must be a list of at least one"),
    (dict(outputs=[["output"]]), r".outputs\[0\] must be a regular expression"),
  ],
)
def test_a_mistake_in_the_config_is_refused(tmp_path, options, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(tmp_path, **options)


def test_without_a_folder_to_write_to_it_is_refused():
  with pytest.raises(UserError, match=PATH + r" writes a file, and this program has no folder"):
    evaluator(None)


@pytest.mark.parametrize(
  "outputs, words",
  [
    (
      ["output", "logits"],
      r".outputs names 'logits', which matches nothing \(did you mean 'pre_logits'\?\)",
    ),
    (["zzz"], ".*known: batch/image, batch/label, encoder/block00/rows, encoder/block01/total, output, pre_logits"),
    (["sum"], r": sum has shape \(\), which is not one row for each of 104 examples"),
  ],
)
def test_what_is_not_there_is_refused_before_the_first_evaluation(tmp_path, outputs, words):
  def predict(variables, batch):
    output, out = linear_classifier.predict(variables, batch)
    return output, {**out, "sum": output.sum()} if outputs == ["sum"] else out

  evaluation = evaluator(tmp_path, predict, outputs=outputs)
  with pytest.raises(UserError, match=PATH + words):
    evaluation.check(linear_classifier.variables())
  assert list(tmp_path.iterdir()) == []
