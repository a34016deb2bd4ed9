"""Images of fractals, made from a formula: data to pre-train on where there are none.

H. Kataoka et al. 2020, "Pre-training without Natural Images" (FractalDB): a class is an iterated function system, a few
random affine maps; its instances vary the maps' coefficients and the patch drawn at each point, and are mirrored. What
differs here: maps are drawn until they contract, so that no orbit escapes; coefficients vary continuously; and an image
has colours, a place and a textured background of its own, as a photo has. 50,000 images of 32 px take about a minute
of one core.

All randomness is `core.data.order.hash64` of the seed, the class and the instance: the same images everywhere, up to
the rounding of a pixel.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from core.data import split as splits
from core.data.columns import Columns, describer, select
from core.data.order import hash64
from core.recipe import sources

# The first word of each hash: what it is for.
_SYSTEM, _SEARCH, _VARY, _START, _WALK, _PLACE, _PATCH, _COLOUR, _NOISE = range(100, 109)
_SPLITS = {"train": 0, "test": 1}

_MAX_MAPS = 8
_MIN_FILLED = 0.2  # Of the paper: least part of the image that a class's fractal covers, here of 64 x 64 pixels ...
_MAX_FILLED = 0.8  # ... and most, as a full square has no shape to know it by.
_SEARCH_SIZE = 64
_CANDIDATES = 16  # Systems tried at a time.
_VARIATION = 0.2  # Of the paper: a coefficient is multiplied by 0.8 to 1.2.
_CONTRACTION = 0.98  # Greatest singular value of a map.
_WARM_UP = 12  # Points of a walk that may not lie on the fractal yet.
_CHUNK = 50  # Images made at a time: what a processor's cache holds.


@dataclasses.dataclass(frozen=True)
class Systems:
  """Iterated function systems of `maps` affine maps each: x' = a x + b y + e, y' = c x + d y + f.

  Attributes:
    coefficients: a, b, c, d, e, f.
    cumulative: of the probabilities of the maps, which are in proportion to their areas |ad - bc|.
  """

  coefficients: Float32[np.ndarray, "6 systems maps"]
  cumulative: Float32[np.ndarray, "systems maps"]


def read(data: sources.Fractals, where: str) -> Columns:
  """Returns `image`, uint8 [n, size, size, 3] in 0..255, and `label`, int64 [n].

  The classes take turns, so that every part of a split has all of them.

  Raises:
    UserError: no such split.
  """
  counts = {"train": data.per_class, "test": max(1, data.per_class // 10)}
  pieces = splits.of_source({key: [count * data.classes] for key, count in counts.items()}, f"{where}.split")
  parts = pieces(data.split)
  arrays = {}
  for key in {part for part, _, _ in parts}:
    label = np.tile(np.arange(data.classes), counts[key])
    arrays[key] = {"image": _dataset(key, data.classes, counts[key], data.size, data.seed), "label": label}

  def noun(part: str, row: int) -> str:
    return f"{part} image {row // data.classes} of fractal class {row % data.classes}"

  return Columns(f"fractals {data.split}", select(arrays, parts), describer(parts, noun), pieces=pieces)


@functools.lru_cache(maxsize=2)
def _dataset(split: str, classes: int, count: int, size: int, seed: int) -> UInt8[np.ndarray, "n size size 3"]:
  made = np.empty((count, classes, size, size, 3), np.uint8)
  for label in range(classes):
    for low in range(0, count, _CHUNK):
      instances = np.arange(low, min(low + _CHUNK, count))
      made[low : low + _CHUNK, label] = images(seed, label, split, instances, size)
  made = made.reshape(count * classes, size, size, 3)
  made.flags.writeable = False  # Several splits share it.
  return made


def images(
  seed: int, label: int, split: str, instances: Int64[np.ndarray, "n"], size: int
) -> UInt8[np.ndarray, "n size size 3"]:
  """Returns the images of some instances of one class."""
  words = (seed, label, _SPLITS[split])
  systems = _varied(class_system(seed, label), words, instances)
  x, y = walk(systems, (_WALK, *words), instances, points=4 * size * size)
  drawn = _patched(histogram(*_placed(x, y, words, instances), size), words, instances)
  return _painted(drawn, words, instances)


@functools.lru_cache(maxsize=4096)
def class_system(seed: int, label: int) -> Systems:
  """Returns the iterated function system of a class: the first candidate whose fractal fills enough of the image."""
  for start in range(0, 64 * _CANDIDATES, _CANDIDATES):
    candidates = np.arange(start, start + _CANDIDATES)
    maps = 2 + int(_uniform(1, _SYSTEM, seed, label, start)[0] * (_MAX_MAPS - 1))
    systems = _random_systems(maps, (_SYSTEM, seed, label), candidates)
    points = walk(systems, (_SEARCH, seed, label), candidates, points=4 * _SEARCH_SIZE**2)
    filled = (histogram(*_fitted(*points), _SEARCH_SIZE) > 1).mean(axis=(1, 2))
    fine = np.flatnonzero((filled >= _MIN_FILLED) & (filled <= _MAX_FILLED))
    if len(fine):
      return Systems(systems.coefficients[:, fine[:1]], systems.cumulative[fine[:1]])
  raise AssertionError(f"no fractal for class {label} of seed {seed}")


def _random_systems(maps: int, words: tuple[int, ...], candidates: Int64[np.ndarray, "n"]) -> Systems:
  """Draws coefficients uniform in [-1, 1], the linear part of every map drawn again until it contracts."""
  draws = 12  # A draw contracts in about 2 of 5 cases; the first that does is taken, else the last is shrunk.
  linear = _uniform((maps, draws, 4), *words, candidates) * 2 - 1
  norm = _spectral_norm(*np.moveaxis(linear, -1, 0))
  first = np.argmax(norm < _CONTRACTION, axis=-1)
  linear = np.take_along_axis(linear, first[..., None, None], axis=2)[:, :, 0]
  shift = _uniform((maps, 2), *words, 1, candidates) * 2 - 1
  return _systems(np.moveaxis(np.concatenate([linear, shift], axis=-1), -1, 0))


def _systems(coefficients: Float32[np.ndarray, "6 systems maps"]) -> Systems:
  a, b, c, d, e, f = coefficients
  shrink = np.minimum(1, _CONTRACTION / _spectral_norm(a, b, c, d))
  a, b, c, d = (value * shrink for value in (a, b, c, d))
  weight = np.abs(a * d - b * c) + 1e-3  # A map that flattens the plane to a line must have its turn, too.
  cumulative = np.cumsum(weight, axis=-1)
  return Systems(np.stack([a, b, c, d, e, f]), cumulative / cumulative[:, -1:])


def _spectral_norm(
  a: Float[np.ndarray, "*maps"],
  b: Float[np.ndarray, "*maps"],
  c: Float[np.ndarray, "*maps"],
  d: Float[np.ndarray, "*maps"],
) -> Float[np.ndarray, "*maps"]:
  """Returns the greatest singular value of [[a, b], [c, d]], arrays."""
  half, det = (a * a + b * b + c * c + d * d) / 2, a * d - b * c
  return np.sqrt(half + np.sqrt(np.maximum(half * half - det * det, 0)))


def _varied(system: Systems, words: tuple[int, ...], instances: Int64[np.ndarray, "n"]) -> Systems:
  """Returns an instance's system: one of the six coefficients, of all maps, times a factor within 1 +- `_VARIATION`."""
  which, factor = _uniform(2, _VARY, *words, instances).T
  factor = 1 + _VARIATION * (2 * factor - 1)
  coefficients = np.repeat(system.coefficients, len(instances), axis=1)
  index = (which * 6).astype(np.int64)
  coefficients[index, np.arange(len(instances))] *= factor[:, None]
  return _systems(coefficients)


def walk(
  systems: Systems, words: tuple[int, ...], instances: Int64[np.ndarray, "n"], points: int
) -> tuple[Float32[np.ndarray, "n points"], Float32[np.ndarray, "n points"]]:
  """Returns points of each system's fractal, by the chaos game: many short walks at once, each step by a random map."""
  walks = max(32, math.isqrt(points))
  steps = -(-points // walks)
  x, y = np.moveaxis(_uniform((walks, 2), _START, *words, instances) * 2 - 1, -1, 0)
  maps = systems.cumulative.shape[1]
  row = np.arange(len(instances))[:, None] * maps
  tables = systems.coefficients.reshape(6, -1)
  found = np.empty((2, len(instances), steps, walks), np.float32)
  for step in range(-_WARM_UP, steps):
    draw = _uniform(walks, *words, step + _WARM_UP, instances)
    index = row + sum(draw >= systems.cumulative[:, n, None] for n in range(maps - 1))
    a, b, c, d, e, f = (table[index] for table in tables)
    x, y = a * x + b * y + e, c * x + d * y + f
    if step >= 0:
      found[:, :, step] = x, y
  return tuple(found.reshape(2, len(instances), -1)[:, :, :points])


def _fitted(
  x: Float32[np.ndarray, "n points"], y: Float32[np.ndarray, "n points"]
) -> tuple[Float[np.ndarray, "n points"], Float[np.ndarray, "n points"]]:
  """Moves and stretches points to fill [0, 1), their longer side all of it; both axes by the same factor."""
  low_x, low_y = x.min(axis=1, keepdims=True), y.min(axis=1, keepdims=True)
  extent_x, extent_y = x.max(axis=1, keepdims=True) - low_x, y.max(axis=1, keepdims=True) - low_y
  extent = np.maximum(np.maximum(extent_x, extent_y), 1e-6) * 1.0001
  return (x - low_x) / extent + (1 - extent_x / extent) / 2, (y - low_y) / extent + (1 - extent_y / extent) / 2


def _placed(
  x: Float32[np.ndarray, "n points"],
  y: Float32[np.ndarray, "n points"],
  words: tuple[int, ...],
  instances: Int64[np.ndarray, "n"],
) -> tuple[Float[np.ndarray, "n points"], Float[np.ndarray, "n points"]]:
  """Mirrors the fitted fractal, turns it by up to 30 degrees, scales it to 0.6 to 1.1 and moves it by up to a tenth."""
  flip_x, flip_y, angle, scale, move_x, move_y = _uniform(6, _PLACE, *words, instances).T[..., None]
  x, y = _fitted(x, y)
  x, y = (x - 0.5) * np.where(flip_x < 0.5, 1, -1), (y - 0.5) * np.where(flip_y < 0.5, 1, -1)
  angle, scale = (2 * angle - 1) * np.float32(math.pi / 6), 0.6 + 0.5 * scale
  cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
  return cos * x - sin * y + 0.4 + 0.2 * move_x, sin * x + cos * y + 0.4 + 0.2 * move_y


def histogram(
  x: Float32[np.ndarray, "n points"], y: Float32[np.ndarray, "n points"], size: int
) -> Float32[np.ndarray, "n size size"]:
  """Counts the points of each image in each pixel; [0, 1) is the image, points outside do not count."""
  column, row = np.floor(x * size).astype(np.int64), np.floor(y * size).astype(np.int64)
  inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
  flat = np.where(inside, (np.arange(len(x))[:, None] * size + row) * size + column, len(x) * size * size)
  return np.bincount(flat.ravel(), minlength=len(x) * size * size + 1)[:-1].reshape(-1, size, size).astype(np.float32)


def _patched(counts: Float32[np.ndarray, "n size size"], words, instances) -> Float32[np.ndarray, "n size size"]:
  """Counts how often a pixel is drawn when every point draws the image's own random patch of 3 x 3, as in the paper."""
  bits = _uniform(9, _PATCH, *words, instances) < 0.25
  bits[:, 4] = True
  padded = np.pad(counts, ((0, 0), (1, 1), (1, 1)))
  size = counts.shape[1]
  drawn = np.zeros_like(counts)
  for bit, (row, column) in zip(bits.T, np.ndindex(3, 3)):
    drawn += bit[:, None, None] * padded[:, row : row + size, column : column + size]
  return drawn


def _painted(drawn: Float32[np.ndarray, "n size size"], words, instances) -> UInt8[np.ndarray, "n size size 3"]:
  """Paints two colours by how dense the fractal is, over two colours that run into each other, and noise on both."""
  usual = drawn.sum(axis=(1, 2), keepdims=True) / np.maximum((drawn > 0).sum(axis=(1, 2), keepdims=True), 1)
  cover, dense = 1 - np.exp(-0.5 * drawn), 1 - np.exp(-0.7 * drawn / np.maximum(usual, 1e-6))
  hue, hue_step, back_hue, back_step, strong, dim, lightness, angle = _uniform(8, _COLOUR, *words, instances).T
  light = lightness < 0.5  # Fractal light on dark ground, or dark on light.
  near = _rgb(hue, 0.3 + 0.7 * strong, np.where(light, 0.85 + 0.15 * dim, 0.05 + 0.3 * dim))
  far = _rgb(hue + 0.5 * hue_step, 0.3 + 0.7 * strong, np.where(light, 0.45 + 0.2 * dim, 0.35 + 0.2 * dim))
  value = np.where(light, 0.05, 0.7)
  ground = [_rgb(back_hue + step, 0.8 * dim, value + 0.3 * level) for step, level in ((0, lightness), (back_step, dim))]

  size = drawn.shape[1]
  grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
  angle = (2 * np.pi * angle).astype(np.float32)[:, None, None]
  ramp = 0.5 + 0.7 * (np.cos(angle) * grid + np.sin(angle) * grid[:, None])
  ramp = np.clip(ramp + 0.8 * _clouds(size, words, instances), 0, 1)
  image = _mixed(*ground, ramp)
  image += cover[..., None] * (_mixed(far, near, dense) - image)
  image += 0.06 * (_uniform((size, size, 1), _NOISE, *words, instances) - 0.5)
  return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _mixed(
  one: Float32[np.ndarray, "n 3"], other: Float32[np.ndarray, "n 3"], share: Float[np.ndarray, "n size size"]
) -> Float[np.ndarray, "n size size 3"]:
  """Mixes two colours an image, by the share of the second at each pixel."""
  return one[:, None, None] + (other - one)[:, None, None] * share[..., None]


def _clouds(size: int, words, instances) -> Float32[np.ndarray, "n size size"]:
  """Returns smooth noise in [-0.5, 0.5]: random values on a coarse grid, with straight lines in between."""
  cells = 4
  values = _uniform((cells + 1, cells + 1), _NOISE, 1, *words, instances) - 0.5
  place = (np.arange(size, dtype=np.float32) + 0.5) / size * cells
  weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells + 1, dtype=np.float32)))
  return np.einsum("ri,nij,cj->nrc", weights, values, weights, optimize=True)


def _rgb(hue: Float[np.ndarray, "n"], saturation, value) -> Float32[np.ndarray, "n 3"]:
  """Turns hue (turns), saturation and value in [0, 1] into red, green, blue in [0, 1]."""
  sector = (np.asarray(hue)[:, None] * 6 + np.array([5, 3, 1])) % 6
  chroma = np.broadcast_to(np.asarray(saturation * value)[..., None], sector.shape)
  fall = np.clip(np.minimum(sector, 4 - sector), 0, 1)
  return (np.asarray(value)[..., None] - chroma * fall).astype(np.float32)


def _uniform(shape: int | tuple[int, ...], *words: int | Int64[np.ndarray, "n"]) -> Float32[np.ndarray, "*shape"]:
  """Draws numbers in [0, 1) of `shape` by `words`; one of them may be an array [n], which gives [n, *shape]."""
  shape = (shape,) if isinstance(shape, int) else shape
  *first, last = words
  key = hash64(*first, last)[:, None] if isinstance(last, np.ndarray) else hash64(*words)[None]
  bits = hash64(key, np.arange(math.prod(shape)))
  numbers = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
  return numbers.reshape(*([len(last)] if isinstance(last, np.ndarray) else []), *shape)
