import numpy as np
import pytest

from core.errors import UserError
from core.training import metrics


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
  log = metrics.MetricsLog(tmp_path / "metrics.jsonl")
  log.write(1, {"training_loss": np.float32(0.1), "lr": 0.5})
  (line,) = metrics.read(tmp_path / "metrics.jsonl")
  assert np.float32(line["training_loss"]) == np.float32(0.1)
  assert line["step"] == 1


def test_resuming_drops_the_steps_that_will_be_taken_again_and_a_half_written_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  log = metrics.MetricsLog(path)
  for step in (1, 2, 3):
    log.write(step, {"training_loss": step / 10})
  log.close()
  with path.open("a") as file:
    file.write('{"step": 4, "train')
  log = metrics.MetricsLog(path, resume_step=2)
  log.write(3, {"training_loss": 7.0})
  assert [(line["step"], line["training_loss"]) for line in metrics.read(path)] == [(1, 0.1), (2, 0.2), (3, 7.0)]


def test_the_line_of_a_step_that_holds_a_key_is_known_after_a_resume_too(tmp_path):
  path = tmp_path / "metrics.jsonl"
  log = metrics.MetricsLog(path)
  log.write(2, {"lr": 0.1})
  log.write(2, {"val/prec@1": 0.5})
  assert metrics.MetricsLog(path, resume_step=2).line(2, "val/prec@1") == {"step": 2, "val/prec@1": 0.5}
  assert metrics.MetricsLog(path, resume_step=2).line(2, "loss") is None
  assert metrics.MetricsLog(path, resume_step=1).line(2, "val/prec@1") is None


def test_a_process_that_does_not_write_leaves_the_file_alone(tmp_path):
  log = metrics.MetricsLog(tmp_path / "metrics.jsonl", writes=False)
  log.write(1, {"a": 1.0})
  assert log.line(1, "a") == {"step": 1, "a": 1.0}
  assert not (tmp_path / "metrics.jsonl").exists()


def test_lines_that_are_none_are_passed_over_and_a_file_that_cannot_be_written_is_refused(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'3\n[]\n{"training_loss": 1}\n{"step": "x"}\n\xff\xfe\n{"step": 1, "a": 2.0}\n')
  assert metrics.read(path) == [{"step": 1, "a": 2.0}]
  assert metrics.read(tmp_path / "no") == []
  (tmp_path / "folder").mkdir()
  with pytest.raises(UserError, match=rf"^{tmp_path}/folder: cannot be read or written \(Is a directory\)$"):
    metrics.MetricsLog(tmp_path / "folder")


def test_the_first_value_that_is_not_finite_is_named():
  assert metrics.first_non_finite({"training_loss": 1.0, "l2_grads": np.inf}) == "l2_grads is inf"
  assert metrics.first_non_finite({"training_loss": np.nan, "l2_grads": np.inf}) == "training_loss is nan"
  assert metrics.first_non_finite({"training_loss": 1.0}) is None
