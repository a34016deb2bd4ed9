"""The table and the page hold the probabilities that the model's own numbers give, worked out by hand."""

import base64
import io
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from core.checkpoint import pretrained
from core.data.columns import bytes_column
from core.pp import builder
from core.testing import compilation, tiny_towers
from tools import zeroshot, zeroshot_page

pytest_plugins = ["core.testing.file_server"]

jax.config.update("jax_num_cpu_devices", 4)
LABELS = ["seven", "three", "nine", "zero"]
TEMPLATES = ["a photo of the digit {}", "the digit {}"]

quick_compilation = compilation.quick(scope="function")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return tiny_towers.write_images(tmp_path_factory.mktemp("photos"), 3)


def flags(config, weights):
  return [f"--config={config}", f"--weights={weights}", "--project=siglip"]


def similarity(config, weights, paths):
  """Cosine similarities of images and labels, the mean over the templates, in double precision."""
  task, variables = tiny_towers.task_of(Path(config)), pretrained.load_variables(str(weights))
  pixels = np.stack([np.asarray(Image.open(path), np.float32) for path in paths])
  zimg = np.asarray(task.predict["image"](variables, {"image": pixels / 127.5 - 1})[0], np.float64)
  of_labels = []
  for label in LABELS:
    written = bytes_column([template.format(label) for template in TEMPLATES])
    tokens = builder.get_batched_fn("bert_tokenize(12,'digit_words')")({"text": written})["labels"]
    mean = np.asarray(task.predict["text"](variables, {"labels": tokens})[0], np.float64).mean(axis=0)
    of_labels.append(mean / np.linalg.norm(mean))
  return zimg @ np.stack(of_labels).T


@pytest.mark.parametrize("bias", [None, -5.0])
def test_the_table_and_the_page_hold_the_models_own_probabilities(bias, images, tmp_path, server, capsys):
  config, weights = tiny_towers.write(tmp_path, bias_init=bias)
  server.content = weights.read_bytes()
  host = server.url.removeprefix("http://")
  outputs = [f"--page={tmp_path / 'out.html'}", f"--output={tmp_path / 'out.json'}"]
  arguments = [*map(str, images), f"--labels={','.join(LABELS)}", f"--templates={TEMPLATES}", "--top", "2", *outputs]
  secret = f"http://user:hunter2@{host}/w.npz?X-Goog-Signature=hunter2"
  assert zeroshot.main([*arguments, *flags(config, secret)]) == 0
  found = json.loads((tmp_path / "out.json").read_text())
  cosines = similarity(config, weights, images)
  np.testing.assert_allclose(found["similarity"], cosines, atol=1e-5)
  logits = 10.0 * cosines
  if bias is None:
    want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  else:
    want = 1 / (1 + np.exp(-(logits + bias)))
  np.testing.assert_allclose(found["probability"], want, atol=1e-4)
  assert found["labels"] == LABELS
  out, err = capsys.readouterr()
  lines = out.splitlines()
  assert lines[0].split() == ["image", "label", "probability", "similarity"]
  assert lines[1].split()[:2] == [images[0].name, LABELS[want[0].argmax()]]
  assert lines[2].split()[0] == LABELS[np.argsort(-want[0])[1]]
  assert lines[3].split()[0] == images[1].name
  page = (tmp_path / "out.html").read_text()
  held = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
  assert held["model"] == found["model"] == f"siglip, http://***@{host}/w.npz?X-Goog-Signature=***"
  assert "hunter" not in page + json.dumps(found) + out + err
  assert held["scores"]["probability"] == found["probability"]
  assert [each["name"] for each in held["images"]] == [path.name for path in images]


def test_labels_may_be_the_classes_of_a_data_set(images, tmp_path, capsys):
  config, weights = tiny_towers.write(tmp_path)
  folder = str(images[0].parent)
  assert zeroshot.main([folder, "--labels=digits", "--templates=name", "--top=20", *flags(config, weights)]) == 0
  assert len(capsys.readouterr().out.splitlines()) == 1 + 3 * 10


def test_a_picture_is_made_smaller():
  picture = zeroshot_page.Picture.of_pixels("a", np.full((800, 400, 3), 255, np.uint8), 320)
  assert (picture.width, picture.height) == (160, 320)
  assert picture.source.startswith("data:image/jpeg;base64,")
  grey = zeroshot_page.Picture.of_pixels("a", np.full((3, 4, 1), 255, np.uint8), 320)
  assert (grey.width, grey.height) == (4, 3)


def test_the_page_shows_what_the_model_saw(tmp_path, capsys):
  config, weights = tiny_towers.write(tmp_path)
  pixels = np.random.default_rng(0).integers(0, 255, (8, 6, 3)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
  exif = Image.Exif()
  exif[0x0112] = 6  # The camera was turned by 90 degrees.
  Image.fromarray(np.rot90(pixels)).save(tmp_path / "sideways.png", exif=exif)
  Image.fromarray(pixels).save(tmp_path / "upright.png")
  given = [str(tmp_path / name) for name in ("sideways.png", "upright.png")]
  outputs = [f"--output={tmp_path / 'scores.json'}", f"--page={tmp_path / 'page.html'}"]
  assert zeroshot.main([*given, "--labels=zero,one", *outputs, *flags(config, weights)]) == 0
  capsys.readouterr()
  sideways, upright = json.loads((tmp_path / "scores.json").read_text())["similarity"]
  assert sideways == upright
  shown = re.findall(r"data:image/png;base64,([^\"]*)", (tmp_path / "page.html").read_text())
  assert len(shown) == 2
  for each in shown:
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))), pixels)


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--labels=a,b"], "no images are named"),
    (["{image}"], "--labels=... is missing"),
    (["nowhere.jpg", "--labels=a,b"], "'nowhere.jpg' is no file"),
    (["{image}", "--labels=cats"], "--labels: 'cats' is no file and no name"),
    (["{image}", "--labels=a,b", "--templates=a photo"], "--templates: 'a photo' is no file and no name"),
    (["{image}", "--labels=a,b", "--templates=['a photo']"], "--templates: 'a photo' must have one {{}}"),
    (["{image}", "--labels=a,b", "--templates=['a"], "is no list like"),
    (["{image}", "--labels=a,b", "--top=0"], "--top must be a whole number above 0"),
    (["{image}", "--labels=a,b", "--page={image}"], "is there already; nothing is overwritten"),
    (["{image}", "--labels=a,b", "--tops=3"], "--tops is unknown .did you mean 'top'"),
    (["{image}", "--labels=a,b", "--project=siglip", "--weights=x.npz"], "give --config=FILE.py"),
  ],
)
def test_a_mistake_is_one_line(arguments, words, images, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(zeroshot.UserError, match=words.replace("{{}}", "{}")):
    zeroshot.main([argument.replace("{image}", str(images[0])) for argument in arguments])


def test_weights_must_be_named_where_the_config_has_none(images, tmp_path):
  config, _ = tiny_towers.write(tmp_path)
  with pytest.raises(zeroshot.UserError, match=r"weights=.* is missing"):
    zeroshot.main([str(Path(images[0])), "--labels=a,b", f"--config={config}", "--project=siglip"])
