"""The input from memory, which needs no TensorFlow: exact positions, mixtures, evaluation."""

import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from core.data import pipeline, source
from core.data.sources import arrays as arrays_source
from core.errors import UserError
from core.recipe.input import Input
from core.recipe.parse import parse
from core.recipe.sources import Source

PP = 'flip_lr|value_range(-1, 1)|keep("image", "label")'


def arrays(n, offset=0, **kw):
  image = np.random.default_rng(0).integers(0, 256, (n, 4, 6, 3), np.uint8)
  return dict(source="arrays", columns={"image": image, "label": np.arange(n) + offset}, **kw)


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


def read(config):
  return parse(Input, config, "config.input")


def evaluation(data, **kw):
  return pipeline.eval_batches(parse(Source, data, "config.evals.val.data"), PP, where="config.evals.val.data", **kw)


def take(config, start, count, **kw):
  batches = pipeline.train_batches(read(config), seed=3, start_step=start, **kw)
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
  a, b = (next(pipeline.train_batches(read(config()), seed=seed, start_step=0))["label"] for seed in (1, 2))
  assert not (a == b).all()


def test_choices_without_replacement_go_through_the_entries_epoch_by_epoch():
  columns = {"captions": np.arange(33).reshape(11, 3), "label": np.arange(11)}
  pp = "choice_no_replacement(inkey='captions', outkey='one')|keep('one', 'label')"
  found = take(dict(data=dict(source="arrays", columns=columns), batch_size=11, pp=pp), 0, 6)
  for first in (found[:3], found[3:]):
    seen = sorted(zip(np.concatenate([x["label"] for x in first]), np.concatenate([x["one"] for x in first])))
    assert seen == [(label, 3 * label + n) for label in range(11) for n in range(3)]
  assert len({tuple(x["one"][np.argsort(x["label"])] % 3) for x in found}) == 6
  evaluated = list(
    pipeline.eval_batches(parse(Source, dict(source="arrays", columns=columns), "data"), pp, batch_size=11)
  )
  assert (evaluated[0]["one"] // 3 == evaluated[0]["label"]).all()


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
  assert pipeline.dataset_size(read(config())) == 37
  assert pipeline.dataset_size(read(mixture())) == 48
  batches = pipeline.train_batches(read(config()), seed=0, start_step=0)
  assert (batches.num_examples, batches.batch_size, batches.skipped) == (37, 8, 0)


@pytest.mark.parametrize("n, batch_size", [(37, 8), (8, 8), (3, 8), (9, 4), (1, 4)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_sees_every_example_once(n, batch_size, processes):
  ids, lengths = [], set()
  for index in range(processes):
    data = evaluation(arrays(n), batch_size=batch_size, process_index=index, process_count=processes, cache=False)
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
  data = evaluation(arrays(37), batch_size=8, cache=cache)
  first = list(data)
  again = list(data)
  assert_same(first, again)
  assert (first[0]["image"] is again[0]["image"]) == (cache is not False)


def test_an_evaluation_left_early_is_not_kept_as_whole():
  data = evaluation(arrays(37), batch_size=8)
  next(iter(data))
  assert len(list(data)) == 5


def refused(line, config, **kw):
  with pytest.raises(UserError) as error:
    pipeline.train_batches(read(config), **(dict(seed=0, start_step=0) | kw))
  assert str(error.value).startswith(line)
  assert "\n" not in str(error.value)


def test_bad_configs_are_refused():
  refused(
    "config.input.batch_size 10 cannot be divided among 4 processes; 8 or 12 can",
    config(batch_size=10),
    process_count=4,
  )
  refused("config.input.pp: pp op 'valu_range' is unknown", config(pp="valu_range(0, 1)"))
  refused("config.input.pp: pp op keep: no key 'labels'", config(pp='keep("labels")'))
  own = {"data": arrays(3), "pp": "keep('labels')"}
  refused("config.input.a.pp: pp op keep: no key 'labels'", config(data={"a": 1}, a=own))
  refused("config.input.a.data.split: there is no split 'al'", config(data={"a": 1}, a={"data": arrays(3, split="al")}))
  parts = dict(a={"data": arrays(3)}, b={"data": arrays(3)})
  refused("config.input.data: a weight is at least 0.0001 of their sum", config(data={"a": 1, "b": 1e-9}) | parts)


def test_evaluations_are_refused_by_the_paths_of_their_data_and_their_preprocessing():
  data = parse(Source, arrays(6))
  options = dict(batch_size=4, where="config.evals.val.data")
  for line, pp, more in (
    ("config.evals.val.pp_fn: pp op keep: no key 'labels'", "keep('labels')", {}),
    ("config.evals.val.pp_txt: pp op 'kep' is unknown", "kep('labels')", dict(pp_where="config.evals.val.pp_txt")),
    ("config.evals.val.batch_size 4 cannot be divided among 3", PP, dict(process_count=3)),
  ):
    with pytest.raises(UserError) as error:
      pipeline.eval_batches(data, pp, **options, **more)
    assert str(error.value).startswith(line)


def test_a_source_is_opened_once_by_whoever_asks_first(monkeypatch):
  opened = []
  columns = arrays_source.read(parse(Source, arrays(5)), "data")
  monkeypatch.setattr(source, "open_source", lambda data, where: opened.append(where) or columns)
  recipe = read(mixture())
  assert pipeline.dataset_size(recipe) == 10
  pipeline.train_batches(recipe, seed=0, start_step=0)
  assert opened == ["config.input.a.data", "config.input.b.data"]


def test_components_of_a_mixture_must_be_alike():
  parts = dict(a={"data": arrays(3)}, b={"data": arrays(3), "pp": 'keep("image", "label")'})
  line = (
    "config.input.b: the examples of a mixture must be alike: 'image' is uint8 [4, 6, 3] here, "
    "float32 [4, 6, 3] in config.input.a"
  )
  refused(line, config(data={"a": 1, "b": 1}) | parts)


def test_digits_never_import_tensorflow():
  program = """
import sys
from core.data import pipeline
from core.recipe.input import Input
from core.recipe.sources import Digits
recipe = Input(data=Digits(split="train"), batch_size=32, pp='value_range(0, 1)|keep("image", "label")')
batches = pipeline.train_batches(recipe, seed=0, start_step=3)
assert next(batches)["image"].shape == (32, 8, 8, 1)
assert len(list(pipeline.eval_batches(Digits(split="test"), recipe.pp, batch_size=32))) == 12
assert not {"tensorflow", "tensorflow_datasets", "sklearn"} & set(sys.modules), "imported"
"""
  subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})
