"""Embeddings made beforehand are those of the locked tower, and train as images do."""

import numpy as np
import pytest

from core.data.sources import digit_captions
from core.testing import trainer
from projects.lit import precompute

SMALL = "--config.input.data.split=train[:300]"


def test_a_run_on_embeddings_follows_that_on_images(tmp_path):
  file = tmp_path / "embedded.npz"
  status, output = trainer.run("projects.lit.precompute", "--config=digits", f"--output={file}", SMALL)
  assert status == 0, output
  assert "300 images, 48 numbers each, with up to 4 captions" in output
  with np.load(file) as arrays:
    captions = digit_captions.load(split="train[:300]").arrays["captions"]
    assert arrays["captions"].tolist() == captions.tolist()
    np.testing.assert_allclose(np.linalg.norm(arrays["zimg"], axis=1), 1, rtol=1e-5)

  losses = {}
  steps = ("--config.total_steps=6", "--config.log_training_steps=1")
  for name, options in {
    "images": ("--config=digits", SMALL),
    "embedded": (f"--config=digits:embedded={file}",),
  }.items():
    status, output = trainer.run("projects.lit.train", *options, *steps, f"--workdir={tmp_path / name}")
    assert status == 0, output
    logged = trainer.repeatable_metrics(tmp_path / name)
    losses[name] = [line["training_loss"] for line in logged if "training_loss" in line]
    assert "zeroshot/digits/accuracy" in logged[-1]  # The tower is there to be evaluated with images.
  assert len(losses["images"]) == 6
  np.testing.assert_allclose(losses["embedded"], losses["images"], rtol=1e-3)


@pytest.mark.parametrize(
  "arguments, line",
  [
    (["--config=digits", "--output=x.npy"], "must end in .npz"),
    (["--config=digits"], "give --config=FILE.py and --output=FILE.npz"),
    (["--config=digits_tower", "--output=x.npz"], "is no config of two towers"),
    (["--config=digits", "--output=x.npz", "--config.schedule=[('.*', {})]"], "config.schedule trains img/"),
  ],
)
def test_what_cannot_be_is_refused(tmp_path, monkeypatch, arguments, line):
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
  with pytest.raises(precompute.UserError, match=line):
    precompute.main(arguments)
