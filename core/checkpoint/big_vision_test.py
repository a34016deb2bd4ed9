import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core import files, trees
from core.checkpoint import big_vision, catalog, pretrained, state_dict, tf_checkpoint
from core.errors import UserError
from core.testing import big_vision_checkpoint, bucket

PARAMS = {
  "img": {"head": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float32)}},
  "txt": {"Embed_0": {"embedding": np.ones((4, 2), jnp.bfloat16)}},
  "t": np.float32([2.3]),
}


@functools.cache
def state():
  """Of a run that has taken no step."""
  return {"params": PARAMS, "opt": optax.chain(optax.identity(), optax.scale_by_adam()).init(PARAMS)}


def assert_same(tree, expected):
  tree, expected = dict(trees.flatten_with_names(tree)), dict(trees.flatten_with_names(expected))
  assert tree.keys() == expected.keys()
  for name, leaf in expected.items():
    assert tree[name].dtype == leaf.dtype
    np.testing.assert_array_equal(tree[name], leaf, err_msg=name)


@pytest.fixture
def folder(tmp_path):
  return big_vision_checkpoint.write(tmp_path, state(), 12_345)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("form", ["checkpoint.bv", "checkpoint.bv-{}", "checkpoint.bv-{}/", "renamed"])
def test_parameters_are_read_whole_and_by_subtree_with_their_types(tmp_path, keep, form):
  folder = big_vision_checkpoint.write(tmp_path, state(), 7, keep=keep)
  suffix = "000000007" if keep else "000000007-tmp"
  assert folder.name == f"checkpoint.bv-{suffix}"
  if form == "renamed":
    folder.rename(tmp_path / form)
  spec = f"{tmp_path}/{form.format(suffix)}"
  assert_same(pretrained.load_params(spec), PARAMS)
  assert_same(pretrained.load_params(f"{spec}:img"), PARAMS["img"])
  assert_same(pretrained.load_params(f"{spec}:img/head"), PARAMS["img"]["head"])
  assert pretrained.load_variables(spec).keys() == {"params"}
  assert pretrained.load_some(spec, ["t"])["t"] == np.float32(2.3)
  assert pretrained.load_grids(spec) == {}


def test_a_whole_state_is_read_by_its_names_there_but_for_the_clock(folder):
  where, named = pretrained.load_state(f"{folder.parent}/checkpoint.bv")
  assert where == str(folder)
  expected = big_vision_checkpoint.named(state())
  assert named.keys() == expected.keys()
  assert {"opt/1/0", "opt/1/1/img/head/kernel", "params/t"} < named.keys()
  for name, leaf in expected.items():
    assert (named[name].dtype, named[name].shape) == (leaf.dtype, leaf.shape)
    np.testing.assert_array_equal(named[name], leaf)


def test_the_newest_whole_checkpoint_is_the_one_that_last_names(tmp_path):
  for step, last in ((5, True), (10, True), (15, False)):
    params = {"w": np.float32([step])}
    big_vision_checkpoint.write(tmp_path, {"params": params, "opt": ()}, step, keep=False, last=last)
  assert pretrained.load_params(f"{tmp_path}/checkpoint.bv")["w"] == 10
  assert pretrained.load_params(f"{tmp_path}/checkpoint.bv-000000005-tmp")["w"] == 5
  assert big_vision.settled(f"{tmp_path}/checkpoint.bv:img") == f"{tmp_path}/checkpoint.bv-000000010-tmp:img"
  assert big_vision.settled("x.npz:img") == "x.npz:img"


@pytest.mark.parametrize("location", ["runs/checkpoint.bv", "checkpoint.bv-000000005-tmp", "gs://b/w/checkpoint.bv"])
def test_a_location_is_known_by_its_name(location):
  for spec, subtree in ((location, ""), (f"{location}:img/head", "img/head")):
    assert pretrained.split(spec) == (location, subtree)
    assert catalog.locate("vit", spec) == spec
    assert not state_dict.is_one(spec)
    assert tf_checkpoint.prefix(spec) is None


@pytest.mark.parametrize("spec", ["howto-i21k-B/16", "x.bv.npz", "checkpoint.bv-last", "https://host/x.npz", ".bv", ""])
def test_other_locations_are_none(spec):
  assert big_vision.split(spec) is None


def test_one_in_a_bucket_is_read_there(folder):
  with bucket.serving():
    for path in folder.parent.rglob("*"):
      if path.is_file() and not path.parent.name.startswith("opt~"):
        files.from_here(f"gs://b/run/{path.relative_to(folder.parent)}").write_bytes(path.read_bytes())
    assert_same(pretrained.load_params("gs://b/run/checkpoint.bv"), PARAMS)
    assert_same(pretrained.load_params("gs://b/run/checkpoint.bv-000012345:img"), PARAMS["img"])
    with pytest.raises(UserError, match=r"^gs://b/run/other\.bv-LAST: no such file"):
      pretrained.load_params("gs://b/run/other.bv")


def test_an_array_in_parts_is_joined(tmp_path):
  devices = jax.sharding.Mesh(np.array(jax.devices()[:1]), "x")
  whole = jax.device_put(np.arange(12.0).reshape(4, 3), jax.sharding.NamedSharding(devices, jax.P()))
  folder = big_vision_checkpoint.write(tmp_path, {"params": {"w": whole}}, 1)
  leaf = folder / "params~w"
  described = json.loads((leaf / ".zarray").read_text()) | {"chunks": [3, 2], "compressor": None}
  shutil.rmtree(leaf)
  leaf.mkdir()
  (leaf / ".zarray").write_text(json.dumps(described))
  padded = np.pad(np.asarray(whole), ((0, 2), (0, 1)))
  for i, j in np.ndindex(2, 2):
    (leaf / f"{i}.{j}").write_bytes(padded[3 * i : 3 * i + 3, 2 * j : 2 * j + 2].tobytes())
  np.testing.assert_array_equal(pretrained.load_params(str(folder))["w"], whole)
  (leaf / "1.0").unlink()
  with pytest.raises(UserError, match=r"params/w is not whole or cannot be read: it has 3 of its 4 chunks$"):
    pretrained.load_params(str(folder))
  (leaf / "2.0").write_bytes(b"")
  with pytest.raises(UserError, match=r"params/w is not whole or cannot be read: its chunk 1\.0 is missing$"):
    pretrained.load_params(str(folder))


LEAF = "params~img~head~kernel"


def change(**described):
  def act(leaf):
    (leaf / ".zarray").write_text(json.dumps(json.loads((leaf / ".zarray").read_text()) | described))

  return act


@pytest.mark.parametrize(
  "damage, words",
  [
    (lambda leaf: (leaf / ".zarray").unlink(), "it has no .zarray"),
    (lambda leaf: (leaf / "0.0").unlink(), "it has 0 of its 1 chunks"),
    (lambda leaf: (leaf / "0.0").write_bytes((leaf / "0.0").read_bytes()[:9]), "Truncated Zstd-compressed stream"),
    (lambda leaf: (leaf / "0.0").write_bytes(b""), "cannot hold"),
    (lambda leaf: (leaf / ".zarray").write_text("{"), ".zarray"),
    (change(dtype="|O"), "Unsupported zarr dtype"),
    (change(zarr_format=3), "zarr_format"),
    (change(compressor={"id": "none of these"}), "is not registered"),
    (change(shape=[2, 3_000]), r"of its 1000 chunks"),
    (change(shape=[2_000, 2_000], chunks=[2_000, 2_000]), "cannot hold"),
    (change(dtype="<i8"), "Not enough data"),
    (change(dtype="|S0"), "is of no size"),
  ],
)
def test_an_array_that_is_not_whole_is_one_line_that_names_it(folder, damage, words):
  damage(folder / LEAF)
  with pytest.raises(UserError, match=words) as refusal:
    pretrained.load_params(f"{folder.parent}/checkpoint.bv:img")
  assert str(refusal.value).startswith(f"{folder}: params/img/head/kernel is not whole or cannot be read: ")
  assert_same(pretrained.load_params(f"{folder.parent}/checkpoint.bv:txt"), PARAMS["txt"])  # Which is.


@pytest.mark.parametrize(
  "value, words", [(np.float32([np.nan]), "holds NaN"), (np.complex64([1]), "holds complex numbers")]
)
def test_numbers_that_no_model_can_hold_are_refused(tmp_path, value, words):
  folder = big_vision_checkpoint.write(tmp_path, {"params": {"head": {"bias": value}}}, 1)
  with pytest.raises(UserError, match=rf"^{folder}: params/head/bias {words}"):
    pretrained.load_params(str(folder))


def test_what_is_not_there_is_one_line(folder):
  work = folder.parent
  last = work / "checkpoint.bv-LAST"
  for spec, line in (
    ("checkpoint.bv:audio", f"{folder}: no subtree 'audio' (there are: img, txt)"),
    ("checkpoint.bv-000000005", f"{work}/checkpoint.bv-000000005: no such checkpoint of big_vision; "
     "there are checkpoint.bv-000012345"),
    ("nothing/checkpoint.bv", f"{work}/nothing/checkpoint.bv-LAST: no such file, which big_vision writes when a "
     "checkpoint is whole"),
  ):  # fmt: skip
    with pytest.raises(UserError) as refusal:
      pretrained.load_params(f"{work}/{spec}")
    assert str(refusal.value) == line
  last.write_text("soon")
  with pytest.raises(UserError, match=r"-LAST: must hold the step of a checkpoint, .*, got 'soon'$"):
    pretrained.load_params(f"{work}/checkpoint.bv")
  last.write_text("000012346")
  with pytest.raises(
    UserError, match=r"-000012346: no such checkpoint of big_vision; there are checkpoint.bv-00001234"
  ):
    pretrained.load_params(f"{work}/checkpoint.bv")
  last.unlink()
  with pytest.raises(UserError, match=r"is whole; there are checkpoint.bv-000012345$"):
    pretrained.load_params(f"{work}/checkpoint.bv")
  for leaf in folder.glob("params~*"):
    shutil.rmtree(leaf)
  with pytest.raises(UserError, match=r"holds no parameters: big_vision keeps each in a folder params~NAME$"):
    pretrained.load_params(str(folder))


def test_older_files_of_a_whole_state_give_the_parameters_alone(tmp_path):
  path = tmp_path / "checkpoint.npz"
  big_vision_checkpoint.write_npz(path, state())
  assert_same(pretrained.load_params(str(path)), PARAMS)
  assert pretrained.load_variables(str(path)).keys() == {"params"}
