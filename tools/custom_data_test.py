"""A folder of class folders, and a JSONL of paths and names of classes, train a ViT without a builder being written."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from core.testing import trainer
from core.training import cli
from projects.vit import train

jax.config.update("jax_num_cpu_devices", 8)

PP = "decode|resize(8)|value_range(-1,1)|onehot(3,key='label',key_result='labels')|keep('image','labels')"
SHADES = {"ant": 30, "bee": 120, "cow": 220}


@pytest.fixture
def photos(tmp_path):
  """Three classes of photos, told apart by their shade, in sizes of their own."""
  rng, rows = np.random.default_rng(0), []
  for name, shade in SHADES.items():
    (tmp_path / "photos" / name).mkdir(parents=True)
    for number in range(20):
      pixels = np.clip(rng.normal(shade, 20, (8 + number, 30 - number, 3)), 0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
      rows.append({"image": f"{name}/{number}.jpg", "label": name})
  rows = [rows[n] for n in rng.permutation(len(rows))]
  for split, part in {"train": rows[:48], "val": rows[48:]}.items():
    (tmp_path / "photos" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
  return tmp_path / "photos"


def run(workdir, data, val, *more):
  arguments = (
    "--config=digits",
    f"--workdir={workdir}",
    f"--config.input.data={data!r}",
    f"--config.input.pp={PP}",
    "--config.input.batch_size=24",
    f"--config.evals.test.data={val!r}",
    f"--config.evals.test.pp_fn={PP}",
    "--config.evals.test.batch_size=8",
    "--config.num_classes=3",
    "--config.total_steps=40",
    "--config.model.depth=1",
    "--config.model.width=32",
    "--config.model.num_heads=2",
    "--config.model.patch_size=(4,4)",
  )
  with pytest.raises(SystemExit) as exit_:
    cli.main(train.TASK, project=Path(train.__file__).parent, default="digits", argv=[*arguments, *more])
  return exit_.value.code


@pytest.mark.parametrize("source", ["folder", "jsonl"])
def test_custom_data_train_through_the_command_line(photos, tmp_path, source):
  if source == "folder":
    data = [dict(source="folder", path=str(photos), split=split) for split in ("train[:80%]", "train[80%:]")]
  else:
    data = [
      dict(source="jsonl", path=str(photos / name), classes="train.jsonl") for name in ("train.jsonl", "val.jsonl")
    ]
  assert run(tmp_path / "run", *data) == 0
  last = trainer.repeatable_metrics(tmp_path / "run")[-1]
  assert last["step"] == 40
  assert last["test/prec@1"] == 1.0


def test_more_classes_than_the_config_says_are_one_line(photos, tmp_path, capfd):
  data = dict(source="folder", path=str(photos), split="train")
  pp = PP.replace("onehot(3", "onehot(2")
  status = run(tmp_path / "run", data, data, f"--config.input.pp={pp}", "--config.num_classes=2", "--config.evals={}")
  assert status == 2
  line = capfd.readouterr().err.strip().splitlines()[-1]
  assert line.startswith("error: config.input.data: ")
  assert "cow/" in line
  assert "labels outside [0, 2) under key 'label'" in line
