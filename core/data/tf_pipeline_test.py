"""The input through tf.data, on small datasets written here: exact positions, resume, damage, errors, evaluation."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from core.data import order, pipeline, split, tfrecord
from core.data.import_tensorflow import import_tfds
from core.data.source import open_source
from core.errors import UserError
from core.import_tensorflow import import_tensorflow
from core.recipe import sources
from core.recipe.input import Input
from core.recipe.parse import parse
from core.testing import tiny_tfds

PP = 'decode|flip_lr|value_range(-1, 1)|keep("image", "label")'
SHARDS = (20, 1, 33, 17)  # 71 examples.
NAME = "tiny"


def example(label):
  image = np.random.default_rng(label).integers(0, 256, (4, 6, 3), np.uint8)
  return {"image": image, "label": label}


def write(data_dir, shards=SHARDS):
  tfds = import_tfds()
  features = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"), "label": np.int64}
  )
  ends = np.cumsum(shards)
  train = [[example(label) for label in range(end - size, end)] for end, size in zip(ends, shards)]
  return tiny_tfds.write(data_dir, NAME, features, {"train": train, "test": [[example(i) for i in range(11)]]})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  write(folder)
  return folder


@pytest.fixture
def own_dir(tmp_path):
  """Files that a test may damage."""
  return write(tmp_path)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
  tf, folder = import_tensorflow(), tmp_path_factory.mktemp("jsonl")
  rows = [{"image": f"{i}.png", "label": i + 1000} for i in range(13)]
  for i in range(13):
    (folder / f"{i}.png").write_bytes(tf.io.encode_png(example(i)["image"]).numpy())
  (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return folder / "train.jsonl"


def tiny(data_dir, part="train"):
  return dict(name=NAME, split=part, data_dir=str(data_dir))


def config(data_dir, window=71, **kw):
  return dict(data=tiny(data_dir), batch_size=8, pp=PP, shuffle_buffer_size=window) | kw


def make_config(kind, data_dir, jsonl):
  fixed = 'decode|value_range(-1, 1)|keep("image", "label")|reshape((4, 6, 3))'
  files = dict(data=dict(source="jsonl", path=str(jsonl)), pp=fixed)
  return {
    "memory": lambda: config(data_dir),
    "streamed": lambda: config(data_dir, window=32),
    "streamed, many to a lane": lambda: config(data_dir, window=70, batch_size=12),
    "files": lambda: files | dict(batch_size=8),
    "mixture": lambda: dict(
      data={"a": 2, "b": 1, "c": 1},
      a=dict(data=tiny(data_dir), shuffle_buffer_size=32),
      b=files,
      c=dict(data=tiny(data_dir, "test")),
      batch_size=8,
      pp=fixed,
    ),
  }[kind]()


KINDS = ("memory", "streamed", "streamed, many to a lane", "files", "mixture")


def train_batches(config, **kw):
  return pipeline.train_batches(parse(Input, config, "config.input"), **kw)


def evaluation(data, pp=PP, **kw):
  return pipeline.eval_batches(parse(sources.Source, data), pp, where="config.evals.val.data", **kw)


def opened(data):
  return open_source(parse(sources.Source, data), "config.input.data")


def take(config, start, count, seed=3, **kw):
  batches = train_batches(config, seed=seed, start_step=start, **kw)
  try:
    return [next(batches) for _ in range(count)]
  finally:
    batches.close()


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert x.keys() == y.keys() == {"image", "label"}
    for key in x:
      np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.parametrize("kind", KINDS)
def test_start_step_continues_as_if_never_stopped(kind, data_dir, jsonl):
  made = make_config(kind, data_dir, jsonl)
  whole = take(made, 0, 30)
  for start in (9, 23):
    assert_same(whole[start : start + 4], take(made, start, 4))


@pytest.mark.parametrize(
  "kind, processes", [("memory", 4), ("streamed", 4), ("streamed, many to a lane", 2), ("files", 2), ("mixture", 2)]
)
def test_processes_share_each_batch_slot_by_slot(kind, processes, data_dir, jsonl):
  made = make_config(kind, data_dir, jsonl)
  parts = [take(made, 7, 6, process_index=i, process_count=processes) for i in range(processes)]
  together = [{key: np.concatenate([p[key] for p in step]) for key in step[0]} for step in zip(*parts)]
  assert_same(together, take(made, 7, 6))


@pytest.mark.parametrize("window", [8, 32, 71])
def test_every_example_once_an_epoch_with_its_own_image(window, data_dir):
  batches = take(config(data_dir, window), 0, 27)
  labels = np.concatenate([batch["label"] for batch in batches])[: 3 * 71].reshape(3, 71)
  assert (np.sort(labels, axis=1) == np.arange(71)).all()
  assert not (labels[0] == labels[1]).all()
  for label, image in zip(batches[5]["label"], batches[5]["image"]):
    expected = example(label)["image"] / 127.5 - 1
    assert min(np.abs(image - e).max() for e in (expected, expected[:, ::-1])) < 1e-6


def test_the_stream_follows_its_arithmetic(data_dir):
  source = opened(tiny(data_dir))
  lanes = order.lanes_for(12, 1)
  stream = order.StreamOrder(3, 0, lanes, source.takes, 70 // (2 * lanes.count))
  starts = np.cumsum(source.takes) - source.takes
  for step, batch in enumerate(take(config(data_dir, 70, batch_size=12), 40, 3), 40):
    slots = order.ReadPlan(lanes, None).slots(step)
    found = [stream.record(int(lane), int(index)) for lane, index in zip(slots.lane, slots.lane_index)]
    np.testing.assert_array_equal(batch["label"], [starts[piece] + number for piece, number in found])


@pytest.mark.parametrize("step", [10, 13, 19])
def test_resume_reads_from_the_start_of_its_windows_on(step, own_dir):
  """Every record outside the windows that a resumed run begins in is damaged: its first batch does not notice."""
  data_dir = own_dir.parent.parent
  made = config(data_dir, window=40, batch_size=2)
  expected = take(made, step, 1)
  source, lanes = opened(tiny(data_dir)), order.lanes_for(2, 1)
  stream = order.StreamOrder(3, 0, lanes, source.takes, 40 // (2 * lanes.count))
  needed = {stream.record(lane, index) for lane in range(lanes.count) for index in range(10, 20)}
  assert len(needed) == 20  # Half of the shuffle buffer; the other half is what is read ahead.
  for piece, file in enumerate(source.files):
    tiny_tfds.damage(pathlib.Path(file), [n for n in range(SHARDS[piece]) if (piece, n) not in needed])
  assert_same(take(made, step, 1), expected)
  with pytest.raises(UserError, match="is damaged"):
    take(made, 9, 1)


@pytest.mark.parametrize("record", [0, 1, 19, 20, 25])
def test_reading_starts_at_any_record(record, data_dir):
  tf, source = import_tensorflow(), opened(tiny(data_dir))
  whole = list(tf.data.TFRecordDataset(source.files[0]).as_numpy_iterator())
  offset, skip = tfrecord.start_of(source.files[0], record)
  assert skip == 0
  variant = [[x] for x in (source.files[0].encode(), offset, 0, max(0, 20 - record))]
  found = tfrecord.read(tfrecord.Segments(*map(np.array, variant)))
  assert list(found.as_numpy_iterator()) == whole[record:]


def test_parts_of_a_split_are_those_of_tfds(data_dir):
  tfds = import_tfds()
  builder = tfds.builder_from_directory(data_dir / NAME / "1.0.0")
  in_order = tfds.ReadConfig(interleave_cycle_length=1)
  for part in ("train[:98%]", "train[98%:]", "train[10:15]", "train[-5:]", "train[13%:57%]"):
    theirs = [int(x["label"]) for x in builder.as_dataset(split=part, read_config=in_order)]
    data = evaluation(tiny(data_dir, part), batch_size=4)
    ours = np.concatenate([batch["label"][batch["_mask"] == 1] for batch in data]).tolist()
    assert ours == theirs
    ((_, low, high),) = split.ranges(part, {"train": [71]}, "")
    assert ours == list(range(low, high))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_sees_every_example_once(processes, data_dir, jsonl):
  for data, n, batch in ((tiny(data_dir), 71, 8), (dict(source="jsonl", path=str(jsonl)), 13, 12)):
    ids, labels, lengths = [], [], set()
    for index in range(processes):
      found = evaluation(data, batch_size=batch, process_index=index, process_count=processes)
      assert [b["_id"].tolist() for b in found] == [b["_id"].tolist() for b in found]
      lengths.add((len(found), len(list(found))))
      for b in found:
        assert len(b["image"]) == batch // processes
        ids += b["_id"][b["_mask"] == 1].tolist()
        labels += b["label"][b["_mask"] == 1].tolist()
    assert sorted(ids) == list(range(n))
    assert [label % 1000 for label in labels] == ids
    assert lengths == {(-(-n // batch),) * 2}


def put_bad_image(folder, label):
  """Writes the dataset's second shard again, its one record without a readable image."""
  tf = import_tensorflow()
  path = next(folder.glob("*00001-of-00004"))
  (record,) = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
  changed = tf.train.Example.FromString(record)
  changed.features.feature["image"].bytes_list.value[0] = b"\x89PNG no image"
  with tf.io.TFRecordWriter(str(path)) as writer:
    writer.write(changed.SerializeToString())


@pytest.mark.parametrize("window", [71, 32])
def test_a_bad_image_is_named_by_record_and_step(window, own_dir):
  data_dir = own_dir.parent.parent
  labels = [batch["label"] for batch in take(config(data_dir, window), 0, 9)]
  step = next(t for t, row in enumerate(labels) if 20 in row)
  put_bad_image(own_dir, 20)
  with pytest.raises(UserError) as error:
    take(config(data_dir, window), 0, 9)
  line = str(error.value)
  assert "record 0 of tiny-train.tfrecord-00001-of-00004 cannot be made an example" in line
  assert f"at step {step} " in line
  assert "skip_errors=True" in line
  assert "\n" not in line
  with pytest.raises(UserError, match=r"record 0 of tiny-train.tfrecord-00001-of-00004 cannot be made an example"):
    list(evaluation(tiny(data_dir), batch_size=8))


@pytest.mark.parametrize("window", [71, 32])
def test_skipped_errors_keep_every_other_position(window, own_dir):
  data_dir = own_dir.parent.parent
  sound = take(config(data_dir, window), 0, 20)
  put_bad_image(own_dir, 20)
  made = config(data_dir, window, skip_errors=True)
  batches = train_batches(made, seed=3, start_step=0)
  got = [next(batches) for _ in range(20)]
  flat, ours = (np.concatenate([batch["label"] for batch in b]) for b in (sound, got))
  bad = flat == 20
  np.testing.assert_array_equal(ours[~bad], flat[~bad])
  np.testing.assert_array_equal(ours[bad], np.roll(flat, -1)[bad])  # The next good one stands in.
  assert batches.skipped == bad.sum() >= 2
  batches.close()
  for start in (1, 6, 12):
    assert_same(got[start : start + 4], take(made, start, 4))


def test_a_damaged_file_is_named_or_its_rest_skipped(own_dir):
  data_dir = own_dir.parent.parent
  file = next(own_dir.glob("*00002-of-00004"))
  tiny_tfds.damage(file, [5])
  for window in (32, 71):
    with pytest.raises(UserError) as error:
      take(config(data_dir, window), 0, 12)
    assert f"{file} is damaged (corrupted record at" in str(error.value)
    assert "\n" not in str(error.value)
    batches = train_batches(config(data_dir, window, skip_errors=True), seed=3, start_step=0)
    labels = np.concatenate([next(batches)["label"] for _ in range(27)])
    assert 26 not in labels
    assert set(range(26)) | set(range(54, 71)) <= set(labels)
    assert 0 < batches.skipped <= 28 * 4
    batches.close()
  with pytest.raises(UserError, match="is damaged"):
    list(evaluation(tiny(data_dir), batch_size=8))


def test_a_file_cut_short_is_refused(own_dir):
  data_dir = own_dir.parent.parent
  file = next(own_dir.glob("*00002-of-00004"))
  offset, _ = tfrecord.start_of(str(file), 30)
  file.write_bytes(file.read_bytes()[:offset])
  tfrecord._record_offsets.cache_clear()
  for window in (32, 71):
    with pytest.raises(UserError, match="is damaged"):
      take(config(data_dir, window), 0, 12)


def test_nothing_but_bad_examples_ends_the_run(data_dir, monkeypatch):
  from core.data import tf_examples

  monkeypatch.setattr(tf_examples, "_MAX_BAD_BATCHES", 20)
  with pytest.raises(UserError, match="no good example in 20 batches from step 0 on"):
    take(config(data_dir, pp='keep("label")|decode(key="label")', skip_errors=True, data=nothing(data_dir)), 0, 1)


def nothing(data_dir):
  rows = [json.dumps({"label": f"no{i}.png"}) for i in range(4)]
  (data_dir / "nothing.jsonl").write_text("\n".join(rows))
  return dict(source="jsonl", path=str(data_dir / "nothing.jsonl"), files=("label",))


def test_a_missing_image_file_is_named(data_dir):
  with pytest.raises(UserError, match=r"data: line \d of .*nothing.jsonl \(.*no\d.png\) cannot be made an example"):
    take(config(data_dir, pp='decode(key="label")', data=nothing(data_dir)), 0, 1)


def test_images_of_unequal_shapes_are_named(tmp_path):
  tf = import_tensorflow()
  for i, width in enumerate((5, 6)):
    (tmp_path / f"{i}.png").write_bytes(tf.io.encode_png(np.zeros((4, width, 3), np.uint8)).numpy())
  (tmp_path / "x.jsonl").write_text("".join(json.dumps({"image": f"{i}.png"}) + "\n" for i in range(2)))
  data = dict(source="jsonl", path=str(tmp_path / "x.jsonl"))
  with pytest.raises(UserError, match=r"'image' has shape \(4, \d, 3\) for line \d of"):
    take(dict(data=data, batch_size=4, pp="decode"), 0, 1)
  with pytest.raises(UserError, match=r"'image' has shape \(4, 5, 3\) for line 1 of"):
    list(evaluation(data, "decode", batch_size=4))


def refused(line, config, **kw):
  with pytest.raises(UserError) as error:
    train_batches(config, **(dict(seed=0, start_step=0) | kw))
  assert line in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("buffer", [20, 1_000])
def test_choices_without_replacement_go_through_the_entries_epoch_by_epoch(data_dir, buffer):
  """Of records in sequence and in memory: an image has four rows."""
  pp = 'decode|choice_no_replacement(inkey="image", outkey="row")|keep("row", "label")'
  batches = train_batches(config(data_dir, batch_size=71, shuffle_buffer_size=buffer, pp=pp), seed=0, start_step=0)
  found = [next(batches) for _ in range(4)]
  rows = {(int(label), row.tobytes()) for x in found for label, row in zip(x["label"], x["row"])}
  assert rows == {(label, row.tobytes()) for label in range(71) for row in example(label)["image"]}
  batches = train_batches(config(data_dir, batch_size=71, shuffle_buffer_size=buffer, pp=pp), seed=0, start_step=3)
  np.testing.assert_array_equal(next(batches)["row"], found[3]["row"])


def test_bad_input_is_refused_before_the_first_step(data_dir, own_dir, monkeypatch):
  refused("no key 'labels'", config(data_dir, pp='decode|keep("labels")'))
  refused("leaves 'image' ragged; pad_to_shape gives", config(data_dir, pp='decode|rag_tensor|keep("image")'))
  refused("config.input.data.split: there is no split 'val'", config(data_dir, data=tiny(data_dir, "val")))
  refused("config.input.data.split: 'train[:0]' holds no examples", config(data_dir, data=tiny(data_dir, "train[:0]")))
  decoded = config(data_dir, data=tiny(data_dir) | {"skip_decode": ["imag"]})
  refused("config.input.data.skip_decode: 'imag' is no image of tiny (did you mean 'image'?)", decoded)
  refused("dataset 'cifar10' is not prepared in", config(data_dir, data=tiny(data_dir) | {"name": "cifar10"}))
  refused("./bazelw run //tools:prepare_data -- cifar10", config(data_dir, data=tiny(data_dir) | {"name": "cifar10"}))
  refused("(did you mean 'cifar10'?)", config(data_dir, data=tiny(data_dir) | {"name": "cifra10"}))
  refused("holds 1.0.0", config(data_dir, data=tiny(data_dir) | {"name": "tiny:9.9.9"}))
  parts = dict(a={"data": tiny(data_dir)}, b={"data": tiny(data_dir), "pp": 'decode|value_range(-1, 1)|keep("image")'})
  refused(
    "config.input.b: the examples of a mixture must be alike: 'label' is missing here, int64 [] in config.input.a",
    config(data_dir, data={"a": 1, "b": 1}, **parts),
  )
  next(own_dir.glob("*00003-of-00004")).unlink()
  refused("tiny-train.tfrecord-00003-of-00004 is missing; prepare it", config(own_dir.parent.parent))
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  assert pipeline.dataset_size(parse(Input, dict(data=dict(name=NAME, split="train"), batch_size=8))) == 71


def test_a_program_ends_by_itself_with_its_input_open(data_dir):
  program = f"""
from core.data import feed, pipeline
import jax
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
from core.recipe.input import Input
from core.recipe.parse import parse
batches = pipeline.train_batches(parse(Input, {config(data_dir, 32)!r}), seed=0, start_step=0)
fed = feed.to_devices(batches, here)
next(fed)
print("fed")
"""
  env = {"PYTHONPATH": ":".join(filter(None, sys.path)), "JAX_PLATFORMS": "cpu"}
  result = subprocess.run(
    [sys.executable, "-c", program], check=True, env=env, timeout=240, capture_output=True, text=True
  )
  assert result.stdout == "fed\n"
  assert result.stderr == ""
