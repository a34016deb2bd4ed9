import io
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from core import trees
from core.checkpoint import pretrained
from core.errors import UserError

TREE = {
  "img": {"head": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "cls": np.ones(2, np.float16)},
  "txt": {"Embed_0": {"embedding": np.arange(4)}},
  "t": np.float32([2.3]),
}


def assert_same(tree, expected):
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  for leaf, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected)):
    assert leaf.dtype == other.dtype
    np.testing.assert_array_equal(leaf, other)


@pytest.fixture
def path(tmp_path):
  return str(tmp_path / "weights.npz")


def test_what_is_saved_is_loaded_with_its_dtypes(path):
  pretrained.save_params(path, TREE)
  assert_same(pretrained.load_params(path), TREE)


def test_numpy_reads_what_is_saved_and_its_files_are_read(path):
  pretrained.save_params(path, TREE)
  named = dict(trees.flatten_with_names(TREE))
  with np.load(path, allow_pickle=False) as file:
    assert sorted(file) == sorted(named)
    assert_same({name: file[name] for name in file}, named)
  for write in (np.savez, np.savez_compressed):
    write(path, **named)
    assert_same(pretrained.load_params(path), TREE)


@pytest.mark.parametrize("root", ["params/", "opt/target/"])
def test_older_files_keep_the_tree_under_a_root(path, root):
  named = {root + name: leaf for name, leaf in trees.flatten_with_names(TREE)}
  np.savez(path, **named, step=np.int32(3), **{"opt/state/step": np.int32(3)})
  assert_same(pretrained.load_params(path), TREE)
  assert_same(pretrained.load_params(f"{path}:img"), TREE["img"])


@pytest.mark.parametrize("subtree", ["img", "img/head", "txt/Embed_0"])
def test_a_subtree_is_read_alone(path, subtree):
  pretrained.save_params(path, TREE)
  node = TREE
  for name in subtree.split("/"):
    node = node[name]
  assert_same(pretrained.load_params(f"{path}:{subtree}"), node)


@pytest.mark.parametrize(
  "spec, parts",
  [
    ("https://host/x.npz?v=2#sha256=00:img/head", ("https://host/x.npz?v=2#sha256=00", "img/head")),
    ("https://host/x.npz:img#sha256=00", ("https://host/x.npz#sha256=00", "img")),
    ("a.npz/b.pt:state_dict", ("a.npz/b.pt", "state_dict")),
    ("https://host.pt:8080/x.npz", ("https://host.pt:8080/x.npz", "")),
    ("https://host.pt:8080/x.npz:img", ("https://host.pt:8080/x.npz", "img")),
    ("mixed_L16L:img", ("mixed_L16L:img", "")),
  ],
)
def test_a_location_ends_where_a_subtree_or_an_entry_begins(spec, parts):
  assert pretrained.split(spec) == parts


def test_bfloat16_is_stored_as_two_byte_void_and_comes_back(path):
  values = jnp.array([1.5, -2.0, 3e38], jnp.bfloat16)
  pretrained.save_params(path, {"a": values, "scalar": jnp.bfloat16(0.5)})
  with np.load(path, allow_pickle=False) as file:
    assert file["a"].dtype == np.dtype("V2")
  loaded = pretrained.load_params(path)
  assert loaded["a"].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(loaded["a"].astype(np.float32), np.asarray(values, np.float32))
  assert loaded["scalar"].shape == ()
  assert loaded["scalar"] == 0.5


def test_equal_parameters_give_equal_bytes(path, tmp_path):
  other = tmp_path / "new" / "folder" / "other.npz"
  pretrained.save_params(path, TREE)
  pretrained.save_params(other, jax.tree.map(jnp.array, jax.tree.map(np.float32, TREE)))
  pretrained.save_params(path, jax.tree.map(np.float32, TREE))
  assert other.read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_save_leaves_the_older_file_and_no_other(path, tmp_path, monkeypatch, failing):
  pretrained.save_params(path, TREE)

  def disk_full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, failing, disk_full)
  with pytest.raises(UserError, match=r"weights.npz: cannot be written \(No space left on device\)$"):
    pretrained.save_params(path, {"a": np.zeros(3)})
  monkeypatch.undo()
  assert os.listdir(tmp_path) == ["weights.npz"]
  assert_same(pretrained.load_params(path), TREE)


def refused(spec):
  with pytest.raises(UserError) as e:
    pretrained.load_params(spec)
  assert "\n" not in str(e.value)
  return str(e.value)


def test_a_missing_file_and_a_folder_are_named(path, tmp_path):
  assert refused(path) == f"{path}: no such file"
  assert refused(f"{path}:img") == f"{path}: no such file"
  assert refused(str(tmp_path)) == f"{tmp_path}: cannot be read (Is a directory)"
  assert refused("s3://bucket/weights.npz:img").startswith(
    "s3://bucket/weights.npz: s3:// is not read; give a local path"
  )


def test_an_unknown_subtree_lists_those_there(path):
  pretrained.save_params(path, TREE)
  assert refused(f"{path}:image") == f"{path}: no subtree 'image' (there are: img, txt)"
  assert refused(f"{path}:t") == f"{path}: no subtree 't' (there are: img, txt)"


def whole_file():
  buffer = io.BytesIO()
  np.savez(buffer, **dict(trees.flatten_with_names({"a": np.arange(1000.0), "b": np.arange(500.0)})))
  return buffer.getvalue()


def flip_a_bit(data):
  data = bytearray(data)
  data[2000] ^= 4
  return bytes(data)


@pytest.mark.parametrize(
  "damage, line",
  [
    (lambda data: data[:-100], "not an .npz file, or a truncated one"),
    (lambda data: data[:50], "not an .npz file, or a truncated one"),
    (lambda data: b"", "not an .npz file, or a truncated one"),
    (lambda data: b"hello", "not an .npz file, or a truncated one"),
    (flip_a_bit, "a damaged .npz file (Bad CRC-32 for file 'a.npy')"),
  ],
)
def test_a_damaged_file_is_refused(path, damage, line):
  Path(path).write_bytes(damage(whole_file()))
  assert refused(path) == f"{path}: {line}"


def test_pickled_objects_are_refused_and_never_run(path, tmp_path):
  class Bomb:
    def __reduce__(self):
      return (os.mkdir, (str(tmp_path / "ran"),))

  np.savez(path, a=np.array([Bomb()], dtype=object))
  assert "holds pickled objects" in refused(path)
  np.array([Bomb()], dtype=object).dump(path)
  assert "not an .npz file" in refused(path)
  assert not (tmp_path / "ran").exists()


def test_other_files_of_numpy_and_other_archives_are_refused(path):
  with open(path, "wb") as file:
    np.save(file, np.zeros(3))
  assert "not an .npz file" in refused(path)
  np.savez(path)
  assert refused(path) == f"{path}: holds no parameters"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", b"as PyTorch stores it")
  assert refused(path) == f"{path}: not an .npz file: archive/data.pkl in it is no array"


def test_arrays_of_no_numbers_and_names_that_clash_are_refused(path):
  np.savez(path, a=np.array(["words"]))
  assert refused(path) == f"{path}: holds no parameters: a is an array of <U5, not of numbers"
  np.savez(path, **{"a/b": np.zeros(1), "a": np.zeros(1), "ab": np.zeros(1)})
  assert refused(path) == f"{path}: a is both an array and a folder of arrays"


def test_what_stands_beside_the_parameters_is_a_subtree_too(path):
  np.savez(path, **{"params/a": np.zeros(1), "state/counts": np.ones(2)})
  assert_same(pretrained.load_params(f"{path}:state"), {"counts": np.ones(2)})
  assert_same(pretrained.load_params(f"{path}:params"), {"a": np.zeros(1)})


STATS = {"img": {"bn": {"mean": np.ones(3, np.float32)}}, "t": {"count": np.int32(7)}}


def test_variables_beside_parameters_are_saved_under_their_collection_s_name(path):
  variables = {"params": TREE, "batch_stats": STATS}
  pretrained.save_variables(path, variables)
  with np.load(path, allow_pickle=False) as file:
    assert set(file) == {name for name, _ in trees.flatten_with_names(variables)}
  assert_same(pretrained.load_variables(path), variables)
  assert_same(pretrained.load_params(path), TREE)
  assert_same(pretrained.load_params(f"{path}:img"), TREE["img"])
  assert_same(pretrained.load_params(f"{path}:batch_stats"), STATS)
  assert_same(pretrained.load_variables(f"{path}:img"), {"params": TREE["img"], "batch_stats": STATS["img"]})
  assert_same(pretrained.load_variables(f"{path}:txt"), {"params": TREE["txt"]})


@pytest.mark.parametrize("variables", [{"params": TREE}, {"params": TREE, "batch_stats": {}, "cache": {"a": {}}}])
def test_without_other_collections_the_names_are_the_published_ones(path, tmp_path, variables):
  pretrained.save_variables(path, variables)
  pretrained.save_params(tmp_path / "same.npz", TREE)
  assert Path(path).read_bytes() == (tmp_path / "same.npz").read_bytes()
  assert_same(pretrained.load_variables(path), {"params": TREE})
  assert_same(pretrained.load_variables(f"{path}:img"), {"params": TREE["img"]})


def test_an_optimizer_s_state_and_counters_of_older_files_are_no_collections(path):
  np.savez(path, **{"params/a": np.zeros(1), "opt/state/mu": np.zeros(1)}, step=np.int32(3))
  assert_same(pretrained.load_variables(path), {"params": {"a": np.zeros(1)}})
  np.savez(path, **{"opt/target/a": np.zeros(1), "opt/state/mu": np.zeros(1)})
  assert_same(pretrained.load_variables(path), {"params": {"a": np.zeros(1)}})


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=rf"^{tmp_path}/file/w.npz: cannot be written \((Not a directory|File exists)\)$"):
    pretrained.save_params(tmp_path / "file" / "w.npz", TREE)
  with pytest.raises(UserError, match=r"^memory://a/w.npz: memory:// is no place for files here"):
    pretrained.save_params("memory://a/w.npz", TREE)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_whatever_the_damage_it_is_one_line_or_none(path, write):
  rng = np.random.default_rng(0)
  write(path, **{"params/a": rng.normal(size=(7, 5)), "params/b": np.zeros(3, "V2")})
  whole = Path(path).read_bytes()
  lines = []
  for _ in range(300):
    data = bytearray(whole)
    for place in rng.integers(len(data), size=3):
      data[place] = rng.integers(256)
    Path(path).write_bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)
    try:
      pretrained.load_params(path)  # A changed date may pass.
    except UserError as e:
      lines.append(str(e))
  assert len(lines) > 150
  assert not any("\n" in line for line in lines)
