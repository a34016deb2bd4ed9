"""Images from the bytes of their files: by TensorFlow where it decodes rightly, by Pillow where it does not.

TensorFlow takes the numbers of a palette's colours in a BMP for grey values and gives opacity wrongly to a PNG with a
palette or of less than 8 bits; it refuses some channels of BMP, GIF and CMYK JPEGs, and reads no WebP, AVIF or TIFF.
"""

import io
import struct
from typing import Any

import numpy as np
from jaxtyping import UInt8

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".avif", ".tif", ".tiff")  # Of files that are decoded.

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF")  # Pillow knows others, some of which run programs.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_JPEG, _PNG, _GIF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8"
_ORIENTATION = 0x0112  # The tag of EXIF (CIPA DC-008, 4.6.4): 1 to 8.
_PALETTE = 3  # A PNG's type of colours.


def decoded(image_bytes: Any, channels: int, *, precise: bool = False, upright: bool = False) -> Any:
  """Returns the image of a file's bytes, a uint8 tensor [height, width, channels]; of several, the first.

  Args:
    image_bytes: a text tensor [].
    channels: 1 for grey, 3 for colour, 4 with opacity.
    precise: decode JPEGs with the accurate integer DCT.
    upright: turn the image as its EXIF orientation says.
  """
  import tensorflow as tf

  shape = [None, None, channels]

  def by_tensorflow():
    image = tf.cond(
      is_jpeg(image_bytes),
      lambda: _of_jpeg(image_bytes, channels, precise),
      lambda: tf.io.decode_image(image_bytes, channels=channels, expand_animations=False),
    )
    image = tf.ensure_shape(image, shape)
    return tf.ensure_shape(turned(image, orientation(image_bytes)), shape) if upright else image

  def by_pillow():
    def run(content):
      try:
        return _by_pillow(_as_bytes(content), channels, upright)
      except ValueError as error:  # As of TensorFlow's own decoders, for the pipeline to name or leave out.
        raise tf.errors.InvalidArgumentError(None, None, str(error)) from None

    return tf.ensure_shape(tf.numpy_function(run, [image_bytes], tf.uint8, stateful=False), shape)

  return tf.cond(_is_tensorflows(image_bytes, channels), by_tensorflow, by_pillow)


def is_jpeg(image_bytes: Any) -> Any:
  """Returns whether a file is a JPEG, a truth tensor []."""
  return _starts_with(image_bytes, _JPEG)


def orientation(image_bytes: Any) -> Any:
  """Returns the EXIF orientation of a file, an int32 tensor [] from 1 (upright) to 8."""
  import tensorflow as tf

  def run(content):
    return np.int32(_orientation(_as_bytes(content)))

  return tf.ensure_shape(tf.numpy_function(run, [image_bytes], tf.int32, stateful=False), [])


def turned(image: Any, how: Any) -> Any:
  """Returns an image [height, width, channels] upright that was stored in an EXIF orientation of 1 to 8."""
  import tensorflow as tf

  def when(kinds, change):
    nonlocal image
    here = image
    image = tf.cond(tf.reduce_any(tf.equal(how, kinds)), lambda: change(here), lambda: here)

  when([5, 6, 7, 8], lambda x: tf.transpose(x, [1, 0, 2]))
  when([2, 3, 6, 7], lambda x: tf.reverse(x, [1]))
  when([3, 4, 7, 8], lambda x: tf.reverse(x, [0]))
  return image


def _as_bytes(content: Any) -> bytes:
  """Returns what `numpy_function` hands over: bytes, or outside of a graph an array of none dimension."""
  return content if isinstance(content, bytes) else content.item()


def _starts_with(image_bytes: Any, magic: bytes) -> Any:
  import tensorflow as tf

  return tf.equal(tf.strings.substr(image_bytes, 0, len(magic)), magic)


def _of_jpeg(image_bytes: Any, channels: int, precise: bool) -> Any:
  """Returns the image of a JPEG, all of it opaque."""
  import tensorflow as tf

  colours = min(channels, 3)
  if precise:
    image = tf.io.decode_jpeg(image_bytes, channels=colours, dct_method="INTEGER_ACCURATE")
  else:
    image = tf.io.decode_image(image_bytes, channels=colours, expand_animations=False)
  return tf.pad(image, [(0, 0), (0, 0), (0, 1)], constant_values=255) if channels == 4 else image


def _is_tensorflows(image_bytes: Any, channels: int) -> Any:
  """Returns whether TensorFlow decodes a file to so many channels, and rightly."""
  import tensorflow as tf

  jpeg, png = is_jpeg(image_bytes), _starts_with(image_bytes, _PNG)
  if channels == 3:
    return jpeg | png | _starts_with(image_bytes, _GIF)
  if channels == 1:
    return png | tf.cond(jpeg, lambda: tf.io.extract_jpeg_shape(image_bytes)[2] < 4, lambda: False)
  # The bits of a channel and the type of colours are bytes 24 and 25 of a PNG.
  start = tf.strings.join([tf.strings.substr(image_bytes, 0, 26), b"\0" * 26])
  header = tf.io.decode_raw(tf.strings.substr(start, 24, 2), tf.uint8)
  return jpeg | (png & (header[0] >= 8) & (header[1] != _PALETTE))


def _by_pillow(content: bytes, channels: int, upright: bool) -> UInt8[np.ndarray, "height width channels"]:
  from PIL import Image, ImageOps

  try:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
      opened.load()
      image = ImageOps.exif_transpose(opened) if upright else opened
      if image.mode.startswith("I;16"):  # As the higher byte, like a PNG of 16 bits.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      if image.mode in ("I", "F"):
        raise ValueError(f"an image of 32 bits a channel ({image.format or opened.format}); 8 and 16 are decoded")
      image = image.convert(_MODES[channels])
  except Image.UnidentifiedImageError:
    raise ValueError("the bytes are of no JPEG, PNG, GIF, BMP, WebP, AVIF or TIFF file") from None
  except (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
    raise ValueError(f"an image that cannot be decoded ({error})") from None
  return np.asarray(image).reshape(image.height, image.width, channels)


def _orientation(content: bytes) -> int:
  """Returns the EXIF orientation of a JPEG or PNG; 1, upright, where it says none."""
  if content.startswith(_JPEG):
    exif = _exif_of_jpeg(content)
  elif content.startswith(_PNG):
    exif = _exif_of_png(content)
  else:
    exif = b""
  order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
  if order is None:
    return 1
  try:
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for number in range(count):
      tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * number)
      if tag == _ORIENTATION:
        return value if kind == 3 and 1 <= value <= 8 else 1  # 3: a short.
  except struct.error:  # Cut short.
    pass
  return 1


def _exif_of_jpeg(content: bytes) -> bytes:
  """Returns the TIFF structure within a JPEG's APP1 segment, which stands before the image; empty where none is."""
  place = 2
  while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] not in (b"", b"\xda", b"\xd9"):
    if content[place + 1] == 0xFF:  # A byte that fills up.
      place += 1
      continue
    length = int.from_bytes(content[place + 2 : place + 4])
    if content[place + 1] == 0xE1 and content[place + 4 : place + 10] == b"Exif\0\0":
      return content[place + 10 : place + 2 + length]
    place += 2 + max(length, 2)
  return b""


def _exif_of_png(content: bytes) -> bytes:
  place = len(_PNG)
  while kind := content[place + 4 : place + 8]:
    length = int.from_bytes(content[place : place + 4])
    if kind == b"eXIf":
      return content[place + 8 : place + 8 + length]
    place += 12 + length
  return b""
