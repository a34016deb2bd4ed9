"""prepare_data checks before it starts, names what is missing, and leaves a whole dataset or none."""

import functools
import http.server
import io
import json
import multiprocessing
import os
import signal
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import urllib3
from PIL import Image

from core.data import pipeline, preparation
from core.data.builders import manual_files
from core.data.import_tensorflow import import_tfds
from core.data.preparation import Dataset
from core.errors import UserError
from core.recipe import sources
from core.testing import generated_tfds
from tools import prepare_data


def jpeg(shade):
  file = io.BytesIO()
  Image.new("RGB", (12, 10), (shade,) * 3).save(file, "JPEG")
  return file.getvalue()


def tar(files, mode="w"):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return file.getvalue()


@pytest.fixture
def manual_dir(tmp_path):
  """An ImageNet-21k of three classes of four images, one of them corrupt."""
  folder = tmp_path / "manual"
  folder.mkdir()
  ids = ("n00000003", "n00000001", "n00000002")
  images = {each: {f"{each}_{n}.JPEG": jpeg(50 * row) for n in range(4)} for row, each in enumerate(ids)}
  images[ids[0]][f"{ids[0]}_0.JPEG"] = b"corrupt"
  whole = tar({f"{each}.tar": tar(files) for each, files in images.items()}, "w:gz")
  (folder / "winter21_whole.tar.gz").write_bytes(whole)
  return folder


def left_over(data_dir):
  """What no finished preparation leaves: all but the datasets themselves, downloaded files and empty lock files."""
  half_made = [path for path in (data_dir / ".preparing").glob("*") if not path.name.endswith(".lock")]
  return half_made + list(data_dir.rglob("*incomplete*")) + list(data_dir.rglob("*.tmp.*"))


def run(capfd, *arguments):
  status = prepare_data.main(list(map(str, arguments)))
  output = capfd.readouterr()
  return status, output.out.splitlines(), output.err.splitlines()


def test_several_at_once_with_a_summary_and_a_status(capfd, tmp_path, manual_dir):
  """Four names: one that can be prepared, one that is there already, one of a typing error, one without its files."""
  data_dir = tmp_path / "data"
  generated_tfds.write(data_dir, "cifar10", splits={"train": 6, "test": 3})
  (data_dir / "cifar10" / "1.0.0").rename(data_dir / "cifar10" / "3.0.2")
  info = data_dir / "cifar10" / "3.0.2" / "dataset_info.json"
  info.write_text(info.read_text().replace("1.0.0", "3.0.2"))
  names = ("imagenet21k/winter21", "cifar10", "cifra10", "imagenet2012")
  status, out, err = run(capfd, *names, f"--data_dir={data_dir}", f"--manual_dir={manual_dir}", "--jobs=2")
  assert status == 2
  assert [line.split()[0] for line in out] == list(names)
  assert "full 11" in out[0]
  assert "skipped 1 corrupt images" in out[0]
  assert "was ready: train 6, test 3" in out[1]
  assert "FAILED: TFDS has no dataset 'cifra10' (did you mean 'cifar10'?)" in out[2]
  assert f"FAILED: missing in {manual_dir}: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar; " in out[3]
  assert err[0].startswith("error: cifra10: ")
  assert "imagenet21k/winter21: ready" in err
  assert not left_over(data_dir)
  data = sources.Tfds(name="imagenet21k/winter21", split="full", data_dir=str(data_dir))
  (batch,) = pipeline.eval_batches(data, "decode|resize(2)|onehot(3,key='label')|keep('image','label')", batch_size=11)
  shade = batch["image"].mean(axis=(1, 2, 3))
  np.testing.assert_array_equal((shade / 50).round(), np.take([1, 2, 0], batch["label"].argmax(1)))
  # Again: nothing to do, and no process for it.
  status, out, err = run(capfd, names[0], f"--data_dir={data_dir}", f"--manual_dir={manual_dir}")
  assert (status, err) == (0, [])
  assert "was ready: full 11" in out[0]


def dataset(tmp_path, name, manual="manual"):
  return Dataset(name, tmp_path / "data", tmp_path / manual)


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
  (tmp_path / "victim").write_text("of the person")
  (tmp_path / "data" / ".preparing").mkdir(parents=True)
  (tmp_path / "data" / ".preparing" / "cifar10.lock").symlink_to(tmp_path / "victim")
  for call in (preparation.discard, lambda wanted: preparation.prepare(wanted, print)):
    with pytest.raises(UserError, match=r"cifar10\.lock cannot be written: Too many levels of symbolic links"):
      call(dataset(tmp_path, "cifar10"))
  assert (tmp_path / "victim").read_text() == "of the person"


def test_a_dataset_that_lost_a_file_is_prepared_anew(capfd, tmp_path, manual_dir):
  wanted = dataset(tmp_path, "imagenet21k/winter21")
  preparation.prepare(wanted, lambda line: None)
  assert preparation.check(wanted)
  (shard,) = (tmp_path / "data").rglob("*tfrecord-00000*")
  before = shard.read_bytes()
  shard.unlink()
  assert preparation.check(wanted) is None
  assert "lacks imagenet21k-full.tfrecord-00000-of-00001; it is prepared anew" in capfd.readouterr().err
  preparation.prepare(wanted, lambda line: None)
  assert shard.read_bytes() == before
  assert not left_over(tmp_path / "data")


@pytest.fixture
def interrupted(tmp_path, manual_dir):
  """Prepares a dataset and calls `act(pid of its process)` in the middle: its archive is a pipe that nobody fills."""
  archive = manual_dir / "winter21_whole.tar.gz"
  archive.unlink()
  os.mkfifo(archive)
  wanted = dataset(tmp_path, "imagenet21k/winter21")

  def prepare(act):
    def wait_and_act():
      with archive.open("wb"):  # Opens when the other side reads.
        assert left_over(wanted.data_dir)
        act(next(each.pid for each in multiprocessing.active_children()))
        done.wait(timeout=60)

    done, thread = threading.Event(), threading.Thread(target=wait_and_act)
    thread.start()
    try:
      return prepare_data.prepare_all([wanted], 1, prepare_data.Screen(io.StringIO()))
    finally:
      done.set()
      thread.join()
      assert not left_over(wanted.data_dir)
      assert not (wanted.data_dir / "imagenet21k").exists()

  return prepare


def test_a_terminated_preparation_leaves_nothing(interrupted):
  with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
    interrupted(lambda pid: os.kill(os.getpid(), signal.SIGTERM))


def test_a_process_that_is_killed_is_reported_and_cleared_away(interrupted):
  results = interrupted(lambda pid: os.kill(pid, signal.SIGKILL))
  assert results == {"imagenet21k/winter21": (False, "its process ended with exit status -9")}


def test_what_a_killed_run_left_is_cleared_away_by_the_next(tmp_path, manual_dir):
  wanted = dataset(tmp_path, "imagenet21k/winter21")
  half = wanted.staging / "imagenet21k" / "winter21" / "incomplete.ABC_1.0.0"
  partial = tmp_path / "data/downloads/imagenet21k/x.tmp.123"
  for folder in (half, partial):
    folder.mkdir(parents=True)
    (folder / "part").write_bytes(b"x")
  preparation.prepare(wanted, lambda line: None)
  assert not left_over(tmp_path / "data")


def test_one_at_a_time_prepares_a_dataset_the_other_waits(tmp_path, manual_dir):
  wanted, lines = dataset(tmp_path, "imagenet21k/winter21"), []
  with preparation._alone(wanted, lines.append):
    other = threading.Thread(target=preparation.prepare, args=(wanted, lines.append))
    other.start()
    deadline = time.monotonic() + 60
    while not lines and time.monotonic() < deadline:
      time.sleep(0.05)
    assert lines == ["waits for another preparation of it to end"]
    assert not (tmp_path / "data" / "imagenet21k").exists()
  other.join(timeout=60)
  assert (tmp_path / "data" / "imagenet21k").exists()


@pytest.fixture(scope="module")
def downloaded():
  """A builder like most of TFDS's: it downloads an archive and unpacks it."""
  tfds = import_tfds()

  class TinyDownloaded(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    url = ""

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"label": np.int64}))

    def _split_generators(self, dl_manager):
      folder = dl_manager.download_and_extract(self.url)
      return {"train": self._generate_examples(Path(folder))}

    def _generate_examples(self, folder):
      for path in folder.iterdir():
        yield path.name, {"label": int(path.read_text())}

  return TinyDownloaded


@pytest.fixture
def server(tmp_path, downloaded):
  """Serves an archive of five labels to `tiny_downloaded`."""
  folder = tmp_path / "served"
  folder.mkdir()
  (folder / "labels.tar").write_bytes(tar({f"{n}.txt": str(n * n).encode() for n in range(5)}))
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
  handler.log_message = lambda *args: None
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  downloaded.url = f"http://127.0.0.1:{server.server_port}/labels.tar"
  yield server
  server.shutdown()
  server.server_close()


def test_a_download_is_reported_kept_and_not_asked_for_again(monkeypatch, tmp_path, server):
  monkeypatch.setattr(preparation, "_REPORT_SECONDS", 0)
  wanted, lines = dataset(tmp_path, "tiny_downloaded"), []
  assert "train 5" in preparation.prepare(wanted, lines.append)
  steps = {line.partition(":")[0] for line in lines}
  assert steps >= {"downloading", "unpacking", "train", "putting in order"}
  assert any(line.startswith("train: 5 examples") or line.startswith("putting in order: 5 of 5") for line in lines)
  data = sources.Tfds(name="tiny_downloaded", split="train", data_dir=str(tmp_path / "data"))
  (batch,) = pipeline.eval_batches(data, "keep('label')", batch_size=5)
  assert sorted(batch["label"]) == [0, 1, 4, 9, 16]
  assert not list((tmp_path / "data").rglob("*.txt"))  # What was unpacked.
  server.shutdown()
  server.server_close()
  os.rename(tmp_path / "data" / "tiny_downloaded", tmp_path / "gone")
  assert "train 5" in preparation.prepare(wanted, lines.append)


def test_no_network_is_one_line_at_once(monkeypatch, tmp_path, server, downloaded):
  server.shutdown()
  server.server_close()
  from tensorflow_datasets.core.download import checksums, downloader

  monkeypatch.setattr(downloader, "MAX_RETRIES", downloader.MAX_RETRIES)  # Only its going back matters here.
  pauses = []
  monkeypatch.setattr(urllib3.util.retry.Retry, "sleep", lambda *args, **kwargs: pauses.append(args))
  info = checksums.UrlInfo(size=1, checksum="00", filename="labels.tar")
  monkeypatch.setattr(downloaded, "url_infos", {downloaded.url: info})
  with pytest.raises(UserError) as error:
    preparation.prepare(dataset(tmp_path, "tiny_downloaded"), lambda line: None)
  assert str(error.value) == (
    f"no network: {downloaded.url} cannot be reached; or fetch by hand into {tmp_path / 'manual'}: "
    f"{downloaded.url} as labels.tar"
  )
  assert pauses == []  # It is not tried again and again.
  assert not left_over(tmp_path / "data")


def test_a_download_that_the_server_lacks_is_one_line(tmp_path, server, downloaded):
  downloaded.url += "x"
  with pytest.raises(UserError, match=r"^DownloadError: Failed to get url .*/labels.tarx\. HTTP code: 404\.$"):
    preparation.prepare(dataset(tmp_path, "tiny_downloaded"), lambda line: None)
  assert not left_over(tmp_path / "data")


def test_real_labels_from_files_given_by_hand(monkeypatch, tmp_path):
  """ReaL (Beyer et al. 2020) offline: sequences of labels, also empty ones, become multi-hot vectors."""
  labels = [[3], [], [999, 0], [17]]
  manual = tmp_path / "manual"
  manual.mkdir()
  images = {f"ILSVRC2012_val_{n + 1:08}.JPEG": jpeg(60 * n) for n in range(4)}
  (manual / "ILSVRC2012_img_val.tar").write_bytes(tar(images))
  (manual / "real.json").write_text(json.dumps(labels))
  from tensorflow_datasets.core.download import checksums

  cls = import_tfds().builder_cls("imagenet2012_real")
  (url,) = (url for url, info in cls.url_infos.items() if info.filename == "real.json")
  digest = checksums.compute_url_info(manual / "real.json")  # In place of the published file's.
  monkeypatch.setattr(cls, "url_infos", {url: digest})
  wanted = dataset(tmp_path, "imagenet2012_real")
  assert preparation.check(wanted) is None
  assert "validation 4" in preparation.prepare(wanted, lambda line: None)
  data = sources.Tfds(name="imagenet2012_real", split="validation", data_dir=str(tmp_path / "data"))
  pp = "decode|resize(2)|onehot(1000,key='real_label',key_result='labels')|keep('image','labels')"
  (batch,) = pipeline.eval_batches(data, pp, batch_size=4)
  found = {round(x.mean() / 60): np.flatnonzero(y).tolist() for x, y in zip(batch["image"], batch["labels"])}
  assert found == {n: sorted(each) for n, each in enumerate(labels)}


@pytest.mark.parametrize(
  "name, files",
  [
    ("imagenet2012", ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")),
    ("imagenet2012_real", ("ILSVRC2012_img_val.tar",)),
    ("imagenet21k", ("fall11_whole.tar",)),
    ("imagenet21k/winter21", ("winter21_whole.tar.gz",)),
    ("celeb_a_hq/256", ("data256x256.tar",)),
    ("resisc45", ("NWPU-RESISC45",)),
    ("samsum", None),
    ("cifar10", ()),
    ("imagenet_v2", ()),
  ],
)
def test_files_to_be_fetched_by_hand_are_known_and_named(tmp_path, name, files):
  wanted = dataset(tmp_path, name)
  assert manual_files.required(import_tfds().builder_cls(wanted.base), wanted.config) == files
  if files == ():
    assert preparation.check(wanted) is None
    return
  with pytest.raises(UserError) as error:
    preparation.check(wanted)
  assert str(wanted.manual_dir) in str(error.value)
  assert all(file in str(error.value) for file in files or ("needs files fetched by hand", "train.json"))
  assert "\n" not in str(error.value)


def test_names_are_checked(tmp_path):
  for name, words in {
    "imagenet_v2/matched-freqency": "has no config 'matched-freqency' (did you mean 'matched-frequency'?)",
    "cifar10:9.9.9": "cifar10",
  }.items():
    with pytest.raises(UserError) as error:
      preparation.check(dataset(tmp_path, name))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_list_of_names(capsys):
  assert prepare_data.main(["--list=imagenet21k"]) == 0
  assert capsys.readouterr().out.split() == ["imagenet21k"]
  assert prepare_data.main(["--list"]) == 0
  assert {"imagenet21k", "cifar10"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
  "arguments, words",
  [([], "name a dataset, or --list=WORD"), (["cifar10", "--jobs=0"], "flag --jobs must be a whole number above 0")],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, words):
  with pytest.raises(UserError, match=words):
    prepare_data.main(arguments)


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_screen_of_a_terminal_and_of_a_file(monkeypatch):
  shown = Terminal()
  screen = prepare_data.Screen(shown)
  screen.report("a", "downloading: 1 of 2 files, 3.0 MB")
  screen.report("b", "starts")
  screen.end("a", "ready")
  screen.close()
  before, after = shown.getvalue().split("a: ready\n")
  assert "a: downloading: 1 of 2 files, 3.0 MB" in before
  assert " | b: starts" in before
  assert "b: starts" in after
  plain = io.StringIO()
  screen = prepare_data.Screen(plain)
  now = iter([0.0, 5.0, 40.0, 40.0, 41.0])
  monkeypatch.setattr(prepare_data.time, "monotonic", lambda: next(now))
  for text in ("downloading: 1 MB", "downloading: 2 MB", "downloading: 3 MB", "train: 5 examples"):
    screen.report("a", text)
  assert plain.getvalue().splitlines() == ["a: downloading: 1 MB", "a: downloading: 3 MB", "a: train: 5 examples"]
