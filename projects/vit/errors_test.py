"""Every mistake a person can make is one line on the screen and a non-zero exit, before anything is overwritten."""

import io
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from core.testing import generated_tfds, trainer
from core.training import cli
from projects.vit.train import TASK

jax.config.update("jax_num_cpu_devices", 8)

TINY = (
  "--config=digits",
  "--config.total_steps=6",
  "--config.model.depth=1",
  "--config.model.width=16",
  "--config.model.num_heads=2",
  "--config.evals.test.log_steps=100",
)
LABELS = "onehot(10,key='label',key_result='labels')|keep('image','labels')"


def run(*arguments) -> int:
  with pytest.raises(SystemExit) as exit_:
    cli.main(TASK, project=Path(__file__).parent, default="digits", argv=arguments)
  return exit_.value.code


def refused(capfd, *arguments, words: str, status: int = 2) -> None:
  assert run(*arguments) == status
  *others, line = capfd.readouterr().err.strip().splitlines()
  assert all("JPEG library" in other for other in others)  # libjpeg's own words, which it prints past everyone.
  assert line.startswith("error: ")
  assert re.search(words, line), line


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--config=digts"], "did you mean 'digits'"),
    (["--config=nowhere/digits.py"], "no file 'nowhere/digits.py'"),
    (["--confg=digits"], "did you mean 'config'"),
    (["digits"], "is not a flag"),
    (["--config.learning_rate=1"], "config.learning_rate is no key of classification"),
    (["--config.lr=fast"], "config.lr must be a number"),
    (["--config.model.dept=3"], "config.model.dept is no key of the model vit .did you mean 'depth'"),
    (["--config.model.variant=XL/16"], "config.model.variant must be .*there is no 'XL'"),
    (["--config.model_name=vitt"], "config.model_name: there is no 'vitt' .did you mean 'vit'"),
    (["--config.input.pp=value_rnage(-1,1)"], "did you mean 'value_range'"),
    ([f"--config.input.pp=value_range(vmix=2)|{LABELS}"], "value_range"),
    ([f"--config.input.pp=value_range(-1,1)|drop('image')|{LABELS}"], "image"),
    (["--config.input.pp=value_range(-1,1)|keep('image')"], "must leave 'labels'"),
    (["--config.num_classes=12"], "num_classes is 12"),
    (["--config.input.batch_sise=3"], "did you mean 'batch_size'"),
    (["--config.input.batch_size=9"], "8 or 16 can"),
    (["--config.input.data.split=trian"], "'train'"),
    (["--config.input.data.name=cifar1O"], "cifar10"),
    (["--config.input.data.name=mnist"], r"//tools:prepare_data -- mnist"),
    (["--config.evals.test.data.split=tset"], "'test'"),
    (["--config.evals.test.log_step=2"], "log_step"),
    (["--config.evals.test.pp_fn=value_range(-1,1)|keep('image')"], "must leave 'labels'"),
    (["--config.schedule.warmup_steps=7"], "longer than"),
    (["--config.schedule.decay_type=cosin"], "'cosine'"),
    (["--config.optax_name=scale_by_adm"], "'scale_by_adam'"),
    (["--config.loss=softmax"], "config.loss must be one of 'softmax_xent', 'sigmoid_xent', got 'softmax'"),
    (["--config.sharding_strategy=[('.*', 'fdsp')]"], "did you mean 'fsdp'"),
    (["--config.mixup.p=-1"], r"config\.mixup\.p must be a number that is not negative, got -1"),
    (["--config.mixup=0.2"], r"config\.mixup must be a dict, got 0\.2"),
    (["--config.model=None"], r"config\.model must be a dict, got None"),
    (["--config.num_classes=True"], r"config\.num_classes must be a whole number from 1 on, got True"),
    (["--config.teachers=['prof']"], r"config\.teachers is no key of classification"),
    (["--config.model_init=nowhere.npz"], "nowhere.npz"),
    (["--config.total_epochs=-1"], "config.total_epochs must be a number that is not negative, got -1"),
  ],
  ids=lambda value: value[-1].removeprefix("--") if isinstance(value, list) else "",
)
def test_a_mistake_in_the_config_is_refused_before_the_first_step(capfd, tmp_path, monkeypatch, arguments, words):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  refused(capfd, *TINY, f"--workdir={tmp_path / 'run'}", *arguments, words=words)
  # What was refused has not claimed the workdir: mend the mistake and start again.
  assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
  "content, words",
  [
    ("def get_config(arg=None)\n  return {}", r"config .*mine\.py:1: SyntaxError"),
    ("def get_config(arg=None):\n  return 1 / 0", r"config .*mine\.py:2: ZeroDivisionError"),
    ("import no_such_module", r"config .*mine\.py:1: ModuleNotFoundError"),
    ("def get_config(arg=None):\n  return 3", "get_config must return a ConfigDict or a dict, not 3"),
    ("get_config = 3", r"mine\.py' has no function get_config"),
    ("def get_config(arg=None):\n  return {}", r"config\.\w+ is missing"),
  ],
)
def test_a_config_file_that_is_none_is_refused_by_its_line(capfd, tmp_path, content, words):
  (tmp_path / "mine.py").write_text(content)
  refused(capfd, f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}", words=words)
  assert not (tmp_path / "run").exists()


def test_labels_outside_the_classes_are_refused_with_their_key(capfd, tmp_path):
  pp = "value_range(-1,1)|onehot(7,key='label',key_result='labels')|keep('image','labels')"
  options = ("--config.num_classes=7", f"--config.input.pp={pp}", f"--workdir={tmp_path / 'run'}")
  refused(capfd, *TINY, *options, words="label.*7")


def test_a_workdir_of_another_config_is_refused_and_left_as_it_is(capfd, tmp_path):
  workdir = f"--workdir={tmp_path / 'run'}"
  assert run(*TINY, workdir, "--config.lr=0.25") == 0
  capfd.readouterr()
  before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
  refused(capfd, *TINY, workdir, "--config.lr=0.5", words=r"config\.lr: 0\.25 there, 0\.5 here")
  assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_workdir_that_cannot_be_made_is_refused(capfd, tmp_path):
  (tmp_path / "file").write_text("")
  refused(capfd, *TINY, f"--workdir={tmp_path / 'file' / 'run'}", words="cannot be written")


def test_a_loss_that_is_not_finite_has_its_own_exit_status(capfd, tmp_path):
  options = ("--config.lr=1e30", "--config.schedule.warmup_percent=0.0", f"--workdir={tmp_path / 'run'}")
  refused(capfd, *TINY, *options, words=r"at step \d+; ", status=cli.EXIT_NON_FINITE)


def test_a_full_disk_ends_the_run_with_an_error_and_what_can_be_written_is(tmp_path):
  workdir, params = tmp_path / "run", tmp_path / "run" / "params.npz"
  options = (*TINY, f"--workdir={workdir}", "--config.ckpt_steps=2")
  assert trainer.run("projects.vit.train", *options)[0] == 0
  trained = params.read_bytes()
  params.unlink()
  for path in sorted((workdir / "checkpoints").iterdir())[1:]:
    path.rename(tmp_path / path.name)  # As if the run had ended after step 4.
  for has_room_for_params in (False, True):
    # A limit on the size of files stands in for a disk with no room; it holds for root, too.
    room = len(trained) + (1_000 if has_room_for_params else -1_000)
    code = "import resource, runpy, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room})); "
    code += "runpy.run_module('projects.vit.train', run_name='__main__', alter_sys=True)"
    process = trainer.start_code(code, *options)
    output, _ = process.communicate()
    assert process.returncode == 1
    # TensorStore's threads print tracebacks of their broken writes between our lines, and into them.
    last = re.findall(r"error: the checkpoint of step 6 could not be written \(.*", output)[-1]
    assert f"the last good checkpoint is {workdir / 'checkpoints' / '4'}; run: {workdir}" in last
    assert (f"the trained parameters are in {params}; " in last) == has_room_for_params
    assert (f"{params}: cannot be written" in last) != has_room_for_params
    assert params.exists() == has_room_for_params
    assert [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()] == ["4"]
  assert params.read_bytes() == trained


def jpeg(size) -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(file, "JPEG")
  return file.getvalue()


@pytest.fixture
def with_a_corrupt_image(tmp_path):
  """Writes a JSONL of 24 images, of which number 11 is cut short."""
  lines = []
  for number in range(24):
    content = jpeg((16, 16))
    (tmp_path / f"{number}.jpg").write_bytes(content[:200] if number == 11 else content)
    lines.append(f'{{"image": "{number}.jpg", "label": {number % 10}}}')
  (tmp_path / "train.jsonl").write_text("\n".join(lines))
  data = dict(source="jsonl", path=str(tmp_path / "train.jsonl"))
  pp = f"decode|resize(8)|value_range(-1,1)|{LABELS}"
  options = (f"--config.input.data={data!r}", f"--config.input.pp={pp}", "--config.input.batch_size=8")
  evals = (
    f"--config.evals.test.pp_fn=value_range(-1,1)|copy('image','image')|{LABELS}",
    "--config.model.patch_size=(8,8)",
  )
  return (*options, *evals, "--config.evals={}")


def test_a_corrupt_jpeg_stops_the_run_by_its_name(capfd, tmp_path, with_a_corrupt_image):
  refused(capfd, *TINY[:-1], *with_a_corrupt_image, f"--workdir={tmp_path / 'run'}", words=r"11\.jpg")


def test_a_corrupt_jpeg_can_be_skipped_and_is_counted(capfd, tmp_path, with_a_corrupt_image):
  options = ("--config.input.skip_errors=True", f"--workdir={tmp_path / 'run'}")
  assert run(*TINY[:-1], *with_a_corrupt_image, *options) == 0
  assert re.search(r"skipped \d+ ", capfd.readouterr().out)


def test_a_truncated_weight_file_is_refused(capfd, tmp_path):
  (tmp_path / "weights.npz").write_bytes(b"PK\x03\x04 and no more")
  options = (f"--config.model_init={tmp_path / 'weights.npz'}", f"--workdir={tmp_path / 'run'}")
  refused(capfd, *TINY, *options, words=r"weights\.npz")


def test_a_missing_file_of_a_prepared_dataset_is_named(capfd, tmp_path, monkeypatch):
  generated_tfds.write(tmp_path / "data", "cifar10")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  (gone,) = (tmp_path / "data").rglob("*train*-00001-of-*")
  os.remove(gone)
  refused(capfd, "--config=cifar:runlocal", f"--workdir={tmp_path / 'run'}", words=gone.name)
