"""Images are decoded as Pillow shows them, whatever the file; what TensorFlow decodes rightly keeps its bits."""

import functools
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from core.data import pipeline
from core.pp import builder, decoding
from core.recipe import sources

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Smooth, so that what JPEG loses is little; no two turns of it are alike.
ACROSS, DOWN = np.meshgrid(np.linspace(0, 1, 48), np.linspace(0, 1, 32))
PIXELS = np.stack([40 + 200 * ACROSS, 40 + 200 * DOWN, 220 - 90 * ACROSS - 90 * DOWN], -1).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
PALETTE = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
BITS = PICTURE.convert("1")
CLEAR = PICTURE.convert("RGBA")
CLEAR.putalpha(Image.fromarray((255 * ACROSS).astype(np.uint8)))


def encoded(image, kind, **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def gif_of_several():
  return encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.transpose(Image.Transpose.ROTATE_180)])


FILES = {
  "JPEG": encoded(PICTURE, "JPEG", quality=95),
  "grey JPEG": encoded(PICTURE.convert("L"), "JPEG", quality=95),
  "CMYK JPEG": encoded(PICTURE.convert("CMYK"), "JPEG", quality=95),
  "PNG": encoded(PICTURE, "PNG"),
  "grey PNG": encoded(PICTURE.convert("L"), "PNG"),
  "PNG with opacity": encoded(CLEAR, "PNG"),
  "grey PNG with opacity": encoded(CLEAR.convert("LA"), "PNG"),
  "PNG with a palette": encoded(PALETTE, "PNG"),
  "PNG with a palette and a clear colour": encoded(PALETTE, "PNG", transparency=3),
  "PNG of 1 bit": encoded(BITS, "PNG"),
  "GIF": encoded(PALETTE, "GIF"),
  "GIF of several": gif_of_several(),
  "BMP": encoded(PICTURE, "BMP"),
  "BMP with a palette": encoded(PALETTE, "BMP"),
  "BMP of 1 bit": encoded(BITS, "BMP"),
  "grey BMP": encoded(PICTURE.convert("L"), "BMP"),
  "BMP of 32 bits": encoded(CLEAR, "BMP"),
  "WebP": encoded(PICTURE, "WEBP", lossless=True),
  "WebP with opacity": encoded(CLEAR, "WEBP", lossless=True, exact=True),
  "AVIF": encoded(PICTURE, "AVIF", quality=90),
  "TIFF": encoded(PICTURE, "TIFF"),
  "TIFF with a palette": encoded(PALETTE, "TIFF"),
}


@functools.cache
def graph(pp):
  fn = builder.get_preprocess_fn(pp)
  spec = [tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)]
  return tf.function(lambda x, seed: fn({"image": x, "_seed": seed})["image"], input_signature=spec, autograph=False)


def run(pp, content, seed=0):
  return graph(pp)(content, seed).numpy()


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", FILES)
def test_every_file_is_decoded_to_every_number_of_channels_as_by_pillow(name, channels, precise):
  wanted = np.asarray(Image.open(io.BytesIO(FILES[name])).convert(MODES[channels])).reshape(32, 48, channels)
  found = run(f"decode({channels}, precise={precise})", FILES[name])
  assert (found.dtype, found.shape) == (np.uint8, wanted.shape)
  lossy = "JPEG" in name or name == "AVIF"
  assert np.abs(found.astype(int) - wanted).max() <= (6 if lossy else 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
  "name", [name for name in FILES if name.split()[-1] == "JPEG" or "PNG" in name or "GIF" in name]
)
def test_what_tensorflow_decodes_rightly_keeps_its_bits(name, channels):
  if channels == 1 and ("GIF" in name or "CMYK" in name):
    return  # Those it refuses.
  wanted = tf.io.decode_image(FILES[name], channels=channels, expand_animations=False)
  np.testing.assert_array_equal(run(f"decode({channels})", FILES[name]), wanted)


def test_grey_of_16_bits_is_the_higher_byte():
  wide = (np.arange(48 * 32).reshape(32, 48) * 40).astype(np.uint16)
  for kind in ("PNG", "TIFF"):
    np.testing.assert_array_equal(run("decode(1)", encoded(Image.fromarray(wide), kind))[..., 0], wide >> 8)


@pytest.mark.parametrize("how", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_upright_turns_an_image_as_its_exif_says(kind, how):
  exif = Image.Exif()
  exif[0x0112] = how
  content = encoded(PICTURE, kind, exif=exif, **{"JPEG": dict(quality=95), "WEBP": dict(lossless=True)}.get(kind, {}))
  wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
  assert wanted.shape == ((48, 32, 3) if how > 4 else (32, 48, 3))
  found = run("decode(upright=True)", content)
  assert found.shape == wanted.shape
  assert np.abs(found.astype(int) - wanted).max() <= (6 if kind == "JPEG" else 0)
  if kind != "TIFF":  # Pillow turns it whoever asks.
    assert run("decode", content).shape == (32, 48, 3)


def test_what_exif_has_wrong_leaves_the_image_as_it_is():
  exif = Image.Exif()
  exif[0x0112] = 6
  for kind in ("JPEG", "PNG"):
    content = encoded(PICTURE, kind, exif=exif)
    assert int(decoding.orientation(tf.constant(content))) == 6
    start = content.index(b"MM\0*") if b"MM\0*" in content else content.index(b"II*\0")
    for place in range(len(content)):
      assert 1 <= int(decoding._orientation(content[:place])) <= 8
    for place in range(start - 12, start + 30):
      for value in (0, 1, 0x7F, 0xFF):
        damaged = content[:place] + bytes([value]) + content[place + 1 :]
        assert 1 <= int(decoding._orientation(damaged)) <= 8


@pytest.mark.parametrize(
  "content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n", FILES["WebP"][:60], FILES["BMP"][:80]]
)
def test_what_is_no_image_is_refused_in_a_line(content):
  with pytest.raises(tf.errors.OpError, match=r"of no JPEG, PNG, GIF, BMP, WebP|cannot be decoded"):
    run("decode", content)


def test_files_of_ones_own_are_turned_and_prepared_data_are_not(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  (tmp_path / "photos" / "a").mkdir(parents=True)
  PICTURE.save(tmp_path / "photos" / "a" / "1.png", exif=exif)
  (tmp_path / "t.jsonl").write_text('{"image": "photos/a/1.png"}')
  content = np.array([(tmp_path / "photos" / "a" / "1.png").read_bytes()], object)

  def shape_of(data, pp="decode"):
    (batch,) = pipeline.eval_batches(data, f"{pp}|keep('image')", batch_size=1)
    return batch["image"].shape[1:3]

  own = (sources.Folder(path=str(tmp_path / "photos")), sources.Jsonl(path=str(tmp_path / "t.jsonl")))
  prepared = sources.Arrays(columns={"image": content})
  assert [shape_of(data) for data in (*own, prepared)] == [(48, 32), (48, 32), (32, 48)]
  assert [shape_of(data, "decode(upright=False)") for data in own] == [(32, 48), (32, 48)]
  assert shape_of(prepared, "decode(upright=True)") == (48, 32)


# The crop op stands second, as `inception_crop` behind `decode`: an op's place seeds its draws.
CROP = "copy('image', 'x')|decode_jpeg_and_inception_crop({})"


@pytest.mark.parametrize("seed", range(5))
def test_a_crop_of_part_of_a_file_is_that_of_the_whole(seed):
  noise = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
  exif = Image.Exif()
  exif[0x0112] = 8
  plain = encoded(Image.fromarray(noise), "JPEG", subsampling="4:2:0")
  turned = encoded(Image.fromarray(noise), "JPEG", exif=exif)
  png = encoded(PICTURE, "PNG")
  fast, whole = run(CROP.format(""), plain, seed), run("decode|inception_crop", plain, seed)
  np.testing.assert_array_equal(fast[:, :-1], whole[:, :-1])
  for content, crop, like in [
    (plain, "precise=True", "decode(precise=True)|inception_crop"),
    (png, "", "decode|inception_crop"),
    (turned, "upright=True", "decode(upright=True)|inception_crop"),
    (turned, "precise=True, upright=True", "decode(precise=True, upright=True)|inception_crop"),
  ]:
    np.testing.assert_array_equal(run(CROP.format(crop), content, seed), run(like, content, seed))
