"""The input from memory, which needs no TensorFlow: exact positions, mixtures, evaluation."""

import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from core.data import pipeline
from core.errors import UserError

PP = 'flip_lr|value_range(-1, 1)|keep("image", "label")'


def arrays(n, offset=0):
  image = np.random.default_rng(0).integers(0, 256, (n, 4, 6, 3), np.uint8)
  return dict(source="arrays", columns={"image": image, "label": np.arange(n) + offset})


def config(n=37, batch_size=8, **kw):
  return dict(data=arrays(n), batch_size=batch_size, pp=PP) | kw


def mixture(batch_size=8):
  return dict(
    data={"a": 0.7, "b": 0.3},
    a={"data": arrays(37)},
    b={"data": arrays(11, offset=1000), "pp": 'value_range(-1, 1)|keep("image", "label")'},
    batch_size=batch_size,
    pp=PP,
  )


def take(config, start, count, **kw):
  batches = pipeline.train_batches(config, seed=3, start_step=start, **kw)
  return [next(batches) for _ in range(count)]


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert x.keys() == y.keys()
    for key in x:
      np.testing.assert_array_equal(x[key], y[key])
      assert x[key].dtype == y[key].dtype


CONFIGS = {"odd": config(), "tiny": config(n=3), "aligned": config(n=64), "mixture": mixture()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("start", [1, 4, 5, 17])
def test_start_step_continues_as_if_never_stopped(name, start):
  assert_same(take(CONFIGS[name], 0, start + 4)[start:], take(CONFIGS[name], start, 4))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch_slot_by_slot(name, processes):
  parts = [take(CONFIGS[name], 2, 6, process_index=i, process_count=processes) for i in range(processes)]
  together = [{key: np.concatenate([p[key] for p in step]) for key in step[0]} for step in zip(*parts)]
  assert_same(together, take(CONFIGS[name], 2, 6))


def test_every_example_once_an_epoch():
  labels = np.concatenate([batch["label"] for batch in take(config(), 0, 15)])[: 3 * 37].reshape(3, 37)
  assert (np.sort(labels, axis=1) == np.arange(37)).all()
  assert not (labels[0] == labels[1]).all()


def test_augmentation_differs_between_epochs_but_not_between_runs():
  batches = take(config(n=8), 0, 12)
  seen = {batch["image"][batch["label"] == 5].tobytes() for batch in batches}
  assert len(seen) == 2  # Flipped and not.
  assert_same(batches, take(config(n=8), 0, 12))


def test_another_seed_gives_another_order():
  a, b = (next(pipeline.train_batches(config(), seed=seed, start_step=0))["label"] for seed in (1, 2))
  assert not (a == b).all()


def test_mixture_reads_each_component_by_its_own_epochs():
  labels = np.concatenate([batch["label"] for batch in take(mixture(), 0, 40)])
  for component, n in ((labels[labels < 1000], 37), (labels[labels >= 1000] - 1000, 11)):
    counts = np.bincount(component, minlength=n)
    # An epoch of a component ends at a time of its own in each lane.
    assert counts.max() - counts.min() <= 3
  assert 0.6 < (labels < 1000).mean() < 0.8


def test_a_config_dict_is_read_as_a_dict():
  assert_same(take(ml_collections.ConfigDict(mixture()), 0, 2), take(mixture(), 0, 2))


def test_sizes():
  assert pipeline.dataset_size(config()) == 37
  assert pipeline.dataset_size(mixture()) == 48
  batches = pipeline.train_batches(config(), seed=0, start_step=0)
  assert (batches.num_examples, batches.batch_size, batches.skipped) == (37, 8, 0)


@pytest.mark.parametrize("n, batch_size", [(37, 8), (8, 8), (3, 8), (9, 4), (1, 4)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_sees_every_example_once(n, batch_size, processes):
  ids, lengths = [], set()
  for index in range(processes):
    data = pipeline.eval_batches(
      arrays(n), PP, batch_size=batch_size, process_index=index, process_count=processes, cache=False
    )
    batches = list(data)
    lengths.add((len(data), len(batches)))
    for batch in batches:
      assert batch["image"].shape == (batch_size // processes, 4, 6, 3)
      assert batch["_mask"].dtype == np.float32
      np.testing.assert_array_equal(batch["_mask"] == 1, batch["_id"] >= 0)
      np.testing.assert_array_equal(batch["label"][batch["_mask"] == 1], batch["_id"][batch["_mask"] == 1])
      ids += batch["_id"][batch["_mask"] == 1].tolist()
  assert sorted(ids) == list(range(n))
  assert lengths == {(-(-n // batch_size),) * 2}


@pytest.mark.parametrize("cache", [None, True, False])
def test_evaluation_repeats_itself(cache):
  data = pipeline.eval_batches(arrays(37), PP, batch_size=8, cache=cache)
  first = list(data)
  again = list(data)
  assert_same(first, again)
  assert (first[0]["image"] is again[0]["image"]) == (cache is not False)


def test_an_evaluation_left_early_is_not_kept_as_whole():
  data = pipeline.eval_batches(arrays(37), PP, batch_size=8)
  next(iter(data))
  assert len(list(data)) == 5


def refused(line, config, **kw):
  with pytest.raises(UserError) as error:
    pipeline.train_batches(config, **(dict(seed=0, start_step=0) | kw))
  assert line in str(error.value)
  assert "\n" not in str(error.value)


def test_bad_configs_are_refused():
  refused("input.batchsize is unknown (did you mean 'batch_size'?)", config(batchsize=8))
  refused("input.batch_size is missing", dict(data=arrays(3)))
  refused("input.batch_size must be a whole number from 1 on, got 0", config(batch_size=0))
  refused("input.cache_raw must be True or False, got 1", config(cache_raw=1))
  refused("input.pp must be a string, got None", config(pp=None))
  refused("input.data must be a dict, got 'digits'", config(data="digits"))
  refused(
    "input.batch_size 10 cannot be divided among 4 processes; 8 or 12 can", config(batch_size=10), process_count=4
  )
  refused("input.b is missing; the mixture input.data names it", config(data={"a": 1, "b": 1}, a={"data": arrays(3)}))
  refused("input.data.a is a weight and must be greater than 0", config(data={"a": 0}, a={"data": arrays(3)}))
  refused(
    "input.a.cache is unknown (did you mean 'cache_raw'?)", config(data={"a": 1}, a={"data": arrays(3), "cache": 1})
  )
  refused("pp op 'valu_range' is unknown", config(pp="valu_range(0, 1)"))
  refused("labels", config(pp='keep("labels")'))
  refused("input.data.split is missing", config(data=dict(name="digits")))


def test_components_of_a_mixture_must_be_alike():
  parts = dict(a={"data": arrays(3)}, b={"data": arrays(3), "pp": 'keep("image", "label")'})
  line = "'image' is float32 [4, 6, 3] in input.a, uint8 [4, 6, 3] in input.b"
  refused(line, config(data={"a": 1, "b": 1}) | parts)


def test_digits_never_import_tensorflow():
  program = """
import sys
from core.data import pipeline
config = dict(data=dict(name="digits", split="train"), batch_size=32, pp='value_range(0, 1)|keep("image", "label")')
batches = pipeline.train_batches(config, seed=0, start_step=3)
assert next(batches)["image"].shape == (32, 8, 8, 1)
assert len(list(pipeline.eval_batches(dict(name="digits", split="test"), config["pp"], batch_size=32))) == 12
assert not {"tensorflow", "tensorflow_datasets", "sklearn"} & set(sys.modules), "imported"
"""
  subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
