"""Embeddings in a file are the model's own, applied by hand to the same pixels and tokens."""

from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet
import pytest

from core.checkpoint import pretrained
from core.data.columns import bytes_column
from core.data.sources import digit_captions
from core.pp import builder
from core.testing import compilation, tiny_towers
from tools import embed, embedding

jax.config.update("jax_num_cpu_devices", 4)
TEXTS = ["a photo of the digit seven", "three and four", "a red nine at the top left", "zero", "the digits one and two"]

quick_compilation = compilation.quick(scope="function")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """Flags that name a tiny model."""
  config, weights = tiny_towers.write(tmp_path_factory.mktemp("model"))
  return [f"--config={config}", f"--weights={weights}", "--project=siglip"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  tiny_towers.write_images(folder / "deep", 5)
  tiny_towers.write_images(folder, 2)
  (folder / "notes.txt").write_text("no image")
  return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  path = tmp_path_factory.mktemp("texts") / "texts.txt"
  path.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
  return path


def by_hand(model, images=None, written=None):
  """The model applied to all at once."""
  config, weights = (Path(flag.partition("=")[2]) for flag in model[:2])
  task, variables = tiny_towers.task_of(Path(config)), pretrained.load_variables(str(weights))
  if images is not None:
    return np.asarray(task.predict["image"](variables, {"image": images.astype(np.float32) / 127.5 - 1})[0])
  labels = builder.get_batched_fn("bert_tokenize(12,'digit_words')")({"text": bytes_column(written)})["labels"]
  return np.asarray(task.predict["text"](variables, {"labels": labels})[0])


def test_images_of_a_folder_and_lines_of_a_file_are_embedded(model, photos, texts, tmp_path, capsys):
  output = tmp_path / "x.npz"
  arguments = [*model, f"--images={photos}", f"--texts={texts}", f"--output={output}", "--batch_size=3"]
  assert embed.main(arguments) == 0
  found = dict(np.load(output))
  assert found["text_id"].tolist() == TEXTS
  names = [str(Path(name).relative_to(photos)) for name in found["image_id"]]
  assert names == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
  pixels = digit_captions.load(split="test[:5]", digits=1).arrays["image"]
  images = np.stack([pixels[int(Path(name).name[0])] for name in names])
  np.testing.assert_allclose(found["zimg"], by_hand(model, images=images), atol=2e-5)
  np.testing.assert_allclose(found["ztxt"], by_hand(model, written=TEXTS), atol=2e-5)
  out, err = capsys.readouterr()
  assert "7 images of 8 numbers, 5 texts of 8 numbers" in out
  assert "images 7/7" in err


def test_parquet_holds_the_same(model, photos, texts, tmp_path):
  for output in ("x.npz", "x.parquet"):
    arguments = [*model, f"--images={photos}/*.png", f"--texts={texts}", f"--output={tmp_path / output}"]
    assert embed.main(arguments) == 0
  rows = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pydict()
  found = dict(np.load(tmp_path / "x.npz"))
  assert rows["side"] == ["image"] * 2 + ["text"] * 5
  assert rows["id"] == [*found["image_id"], *found["text_id"]]
  np.testing.assert_array_equal(np.array(rows["embedding"], np.float32), [*found["zimg"], *found["ztxt"]])


@pytest.mark.parametrize("data", ["zeroshot", "retrieval", "input"])
def test_the_images_of_a_configs_data_are_embedded(model, data, tmp_path):
  output = tmp_path / "x.npz"
  if data == "input":
    model = [*model, "--pp_img=value_range(-1,1)"]
  assert embed.main([*model, f"--data={data}", f"--output={output}"]) == 0
  found = dict(np.load(output))
  images = digit_captions.load(split="test[:20]", digits=1).arrays["image"]
  np.testing.assert_allclose(found["zimg"], by_hand(model, images=images), atol=2e-5)
  assert found["image_id"].tolist() == [str(n) for n in range(20)]
  assert "ztxt" not in found


def test_texts_alone_are_embedded_without_any_image(model, texts, tmp_path):
  output = tmp_path / "x.npz"
  assert embed.main([*model, f"--texts={texts}", f"--output={output}"]) == 0
  found = dict(np.load(output))
  np.testing.assert_allclose(found["ztxt"], by_hand(model, written=TEXTS), atol=2e-5)
  assert "zimg" not in found


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--output=x.npz"], "nothing to embed"),
    (["--texts={texts}"], "--output=... is missing"),
    (["--texts={texts}", "--output=x.csv"], "must end in .npz or .parquet"),
    (["--texts={texts}", "--output={texts}.npz"], "is there already; nothing is overwritten"),
    (["--texts=nowhere.txt", "--output=x.npz"], "--texts: no file nowhere.txt"),
    (["--images=nowhere", "--output=x.npz"], "'nowhere' is no file, no folder with images in it, and matches none"),
    (["--images={photos}/notes.txt", "--output=x.npz"], "notes.txt: no image by its name; make it one of .jpg"),
    (["--images={photos}", "--data=input", "--output=x.npz"], "give one of --images=... and --data"),
    (["--data=zerosht", "--output=x.npz"], "no eval 'zerosht' .did you mean 'zeroshot'"),
    (["--texts={texts}", "--output=x.npz", "--batch_size=0"], "--batch_size must be a whole number above 0"),
    (["--texts={texts}", "--output=x.npz", "--workdir=a"], "one of --weights=... and --workdir"),
    (["--texts={texts}", "--output=x.npz", "--pp_txt=tokenise(3)"], "'tokenise' is unknown"),
  ],
)
def test_a_mistake_is_one_line(arguments, words, model, photos, texts, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "x").mkdir()
  Path(f"{texts}.npz").touch()
  with pytest.raises(embed.UserError, match=words):
    embed.main([*model, *(argument.format(texts=texts, photos=photos) for argument in arguments)])


def test_a_file_that_cannot_be_read_is_named(model, tmp_path):
  (tmp_path / "latin.txt").write_bytes("fine\nKäfer\n".encode("latin-1"))
  with pytest.raises(embed.UserError, match=r"--texts: .*latin\.txt line 2 is not UTF-8"):
    embed.main([*model, f"--texts={tmp_path / 'latin.txt'}", f"--output={tmp_path / 'x.npz'}"])
  (tmp_path / "broken.png").write_bytes(b"no picture")
  with pytest.raises(embed.UserError, match=r"broken\.png"):
    embed.main([*model, f"--images={tmp_path / 'broken.png'}", f"--output={tmp_path / 'x.npz'}"])
  assert not (tmp_path / "x.npz").exists()


def test_a_model_of_one_side_is_refused(texts, tmp_path):
  arguments = ["--config=projects/vit/configs/digits.py", "--weights=x.npz", f"--texts={texts}"]
  with pytest.raises(embed.UserError, match="the model of vit embeds no images; lit, siglip and clippo have one"):
    embed.main([*arguments, f"--output={tmp_path / 'x.npz'}"])


def test_a_text_ends_at_a_line_feed_alone(tmp_path):
  (tmp_path / "texts.txt").write_bytes("\ufeffa cat\u2028on a mat\r\n\r\na dog\x0cin fog\r\n".encode())
  assert embedding.read_lines(str(tmp_path / "texts.txt"), "texts") == ["a cat\u2028on a mat", "a dog\x0cin fog"]
