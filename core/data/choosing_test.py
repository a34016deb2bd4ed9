"""Examples chosen by a condition, before and after preprocessing, and entries kept: exact positions, exact resume."""

import numpy as np
import pytest

from core.data import pipeline
from core.data.import_tensorflow import import_tfds
from core.errors import UserError
from core.recipe.input import Input
from core.recipe.parse import parse
from core.testing import tiny_tfds

SHARDS = (20, 1, 33, 17)  # 71 examples; that of the second shard, 20, is never asked for.
CONDITION = "label % 3 == 0"
CHOSEN = [label for label in range(71) if label % 3 == 0]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  write(folder)
  return folder


def write(folder):
  tfds = import_tfds()
  features = tfds.features.FeaturesDict({"label": np.int64, "extra": {"square": np.int64}})
  ends = np.cumsum(SHARDS)
  rows = [[{"label": i, "extra": {"square": i * i}} for i in range(e - n, e)] for e, n in zip(ends, SHARDS)]
  return tiny_tfds.write(folder, "tiny", features, {"train": rows})


def tfds(folder, window=71, **kw):
  data = dict(name="tiny", split="train", data_dir=str(folder))
  return dict(data=data, batch_size=8, shuffle_buffer_size=window, pp='keep("label")') | kw


def columns(pp='keep("label")', **kw):
  data = dict(source="arrays", columns=dict(label=np.arange(71), square=np.arange(71) ** 2))
  return dict(data=data, batch_size=8, pp=pp) | kw


CASES = {
  "columns": lambda folder, **kw: columns(**kw),
  "columns one by one": lambda folder, **kw: columns(skip_errors=True, **kw),
  "held": lambda folder, **kw: tfds(folder, **kw),
  "streamed": lambda folder, **kw: tfds(folder, window=8, **kw),
}


def batches(config, count, start=0, **kw):
  made = pipeline.train_batches(parse(Input, config, "config.input"), seed=3, start_step=start, **kw)
  try:
    return [next(made) for _ in range(count)], made
  finally:
    made.close()


def labels(config, count, start=0, **kw):
  return np.concatenate([batch["label"] for batch in batches(config, count, start, **kw)[0]])


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_is_each_example_that_meets_the_condition_once(case, data_dir):
  config = CASES[case](data_dir, pre_filter_fn=CONDITION)
  assert pipeline.dataset_size(parse(Input, config)) == len(CHOSEN) == 24
  found = labels(config, 9).reshape(3, 24)
  assert np.sort(found, axis=1).tolist() == [CHOSEN] * 3
  assert found[0].tolist() != found[1].tolist()
  for start in (2, 5):
    assert labels(config, 3, start).tolist() == found.ravel()[8 * start : 8 * (start + 3)].tolist()
  parts = [labels(config, 4, 1, process_index=i, process_count=2).reshape(4, 4) for i in range(2)]
  assert np.concatenate(parts, axis=1).ravel().tolist() == found.ravel()[8:40].tolist()


@pytest.mark.parametrize("case", CASES)
def test_a_condition_that_all_meet_changes_no_position(case, data_dir):
  plain = labels(CASES[case](data_dir), 12)
  assert labels(CASES[case](data_dir, pre_filter_fn="label >= 0"), 12).tolist() == plain.tolist()
  assert labels(CASES[case](data_dir, post_filter_fn="label >= 0"), 12).tolist() == plain.tolist()


@pytest.mark.parametrize("case", CASES)
def test_the_next_that_meets_the_condition_takes_the_place_of_one_that_does_not(case, data_dir):
  plain = labels(CASES[case](data_dir), 40)
  config = CASES[case](data_dir, post_filter_fn=CONDITION)
  assert pipeline.dataset_size(parse(Input, config)) == 71
  expected = [next(label for label in plain[place:] if label % 3 == 0) for place in range(8 * 12)]
  found, made = batches(config, 12)
  assert np.concatenate([batch["label"] for batch in found]).tolist() == expected
  assert made.skipped == 0
  for start in (1, 7):
    assert labels(config, 2, start).tolist() == expected[8 * start : 8 * (start + 2)]


def test_a_nested_entry_chooses_before_preprocessing(data_dir):
  config = tfds(data_dir, pre_filter_fn="example['extra']['square'] > 4_000")
  assert set(labels(config, 7)) == set(range(64, 71))


def test_each_component_of_a_mixture_has_its_own_condition(data_dir):
  config = dict(
    data=dict(a=1, b=1),
    a=tfds(data_dir, window=8) | dict(pre_filter_fn="label < 10"),
    b=dict(data=columns()["data"], post_filter_fn="label >= 50"),
    batch_size=8,
    pp='keep("label")',
  )
  del config["a"]["batch_size"]
  found = labels(config, 20)
  assert set(found) <= set(range(10)) | set(range(50, 71))
  assert set(range(10)) <= set(found)
  assert labels(config, 5, 9).tolist() == found[72:112].tolist()


def test_what_is_damaged_is_left_out_where_errors_are_skipped(tmp_path):
  folder = write(tmp_path)
  tiny_tfds.damage(sorted(folder.glob("*train*"))[2], [4])  # Labels from 25 to 53 are behind it.
  config = tfds(tmp_path, window=8, pre_filter_fn=CONDITION)
  with pytest.raises(UserError, match=r"^config\.input\.pre_filter_fn: a record cannot be read .* is damaged"):
    labels(config, 1)
  sound = [label for label in CHOSEN if not 25 <= label < 54]
  found = labels(config | dict(skip_errors=True), len(sound))
  assert set(found) == set(sound)


@pytest.mark.parametrize("case", CASES)
def test_entries_that_are_kept_are_the_only_ones(case, data_dir):
  config = CASES[case](data_dir, keep_only=["label"]) | dict(pp="copy('label','more')")
  (batch,), _ = batches(config, 1)
  assert set(batch) == {"label"}
  with pytest.raises(UserError, match=r"^config\.input\.keep_only: config\.input\.pp leaves no 'image'; it leaves: "):
    batches(config | dict(keep_only=["label", "image"]), 1)


def test_a_condition_may_ask_for_an_entry_that_is_not_kept(data_dir):
  config = columns("copy('square','more')", keep_only=["label"], post_filter_fn="more > 4_000")
  assert set(labels(config, 5)) <= set(range(64, 71))


def test_entries_of_entries_are_refused(data_dir):
  with pytest.raises(
    UserError, match=r"^config\.input\.pp leaves 'extra', which holds entries of its own; flatten, or"
  ):
    batches(tfds(data_dir, pp=""), 1)


def test_components_that_keep_the_same_entries_may_leave_others(data_dir):
  parts = dict(a=dict(data=columns()["data"]), b=dict(data=tfds(data_dir)["data"], pp="flatten"))
  config = dict(data=dict(a=1, b=1), batch_size=8, pp="", **parts)
  with pytest.raises(UserError, match="the examples of a mixture must be alike"):
    batches(config, 1)
  assert set(batches(config | dict(keep_only=["label"]), 1)[0][0]) == {"label"}


@pytest.mark.parametrize(
  "changes, line",
  [
    (dict(pre_filter_fn="label > 70"), r"config\.input\.pre_filter_fn: none of the 71 examples meets it"),
    (dict(pre_filter_fn="labl > 3"), r"config\.input\.pre_filter_fn: .*there is no entry 'labl'"),
    (dict(post_filter_fn="square > 3"), r"config\.input\.post_filter_fn: .*there is no entry 'square'"),
    (dict(post_filter_fn="label > 70"), r"config\.input\.post_filter_fn: no example of 1000 batches from step 0 on"),
    (dict(pre_filter_fn="label >"), r"config\.input\.pre_filter_fn must be a condition on an example, as 'label < 1"),
  ],
)
@pytest.mark.parametrize("case", ["columns", "streamed"])
def test_a_condition_that_does_not_fit_is_refused(case, changes, line, data_dir):
  with pytest.raises(UserError, match=f"^{line}"):
    batches(CASES[case](data_dir, **changes), 1)
