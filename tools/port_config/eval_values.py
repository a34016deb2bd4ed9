"""What the rules make of the values of evaluations, see `tools.port_config.values`."""

import re
from collections.abc import Mapping
from typing import Any

from core.evaluators import prompts
from tools.port_config.rule import DROP, Unportable

_PREDICTION = re.compile(r"(?P<student>student|predict)?(_?seqhw=(?P<size>\d+))?(_?(?P<teacher>.+?))??(_fwd)?")
_ZEROSHOT = "zeroshot"
# What zero-shot classification does where a config does not say.
_PP_IMG = "decode|resize(224)|value_range(-1, 1)"
_PP_TXT = "tokenize(max_len=16, eos='sticky', pad_value=1, inkey='texts', outkey='labels', empty='keep')"
_DATASETS = ("imagenet2012", "cifar100", "oxford_iiit_pet")


def evaluator(value: Any, port: Any) -> str:
  """Returns what an evaluator is called here."""
  return port.evaluator(value)


def evaluator_of_name(port: Any, names: Mapping[str, str]) -> str:
  """Returns the evaluator of an evaluation that names none: its own name is one."""
  return port.evaluator(names["NAME"])


def prediction(value: Any, port: Any) -> Any:
  """Returns the prediction of an evaluation: `student_prof_fwd`, `student_seqhw=8_prof`, `predict_seqhw=8`, `prof`.

  Raises:
    Unportable: there is no such prediction.
  """
  if value == "predict":
    return DROP
  found = _PREDICTION.fullmatch(value)
  teacher = found["teacher"] if found else None
  if found is None or (teacher and teacher not in port.teachers):
    raise Unportable(f"there is no prediction {value!r} here")
  if found["size"] and int(found["size"]) not in port.config["flexi"]["seqhw"]["v"]:
    raise Unportable(f"flexi.seqhw.v does not have the size of {value!r}")
  one = f"{found['student']}_{found['size']}" if found["size"] else found["student"]
  return dict(student=one, teacher=teacher) if teacher and one else teacher or one


def first(value: Any, port: Any) -> Any:
  """Returns whether an evaluation runs before the first step."""
  return not value and always_first(port, {"NAME": port.path[1]})


def always_first(port: Any, names: Mapping[str, str]) -> Any:
  """Returns that an evaluation runs before the first step; where nothing says how often, then alone."""
  entry = port.config["evals"][names["NAME"]]
  return True if any(key.startswith("log_") for key in entry) else "only"


def test_split(port: Any, names: Mapping[str, str]) -> Any:
  """Returns the split that retrieval reads where none is given."""
  return "test" if _type(port) == "retrieval" else DROP


def pp_img(port: Any, names: Mapping[str, str]) -> Any:
  """Returns what zero-shot classification does to images where nothing says so."""
  return _PP_IMG if _type(port) == _ZEROSHOT else DROP


def pp_txt(port: Any, names: Mapping[str, str]) -> Any:
  """Returns what zero-shot classification does to texts where nothing says so."""
  return _PP_TXT if _type(port) == _ZEROSHOT else DROP


def few_shot(value: Any, port: Any) -> Any:
  """Returns the data sets of few-shot accuracy, (name, train split, test split) each."""
  return {name: tuple(each) for name, each in value.items()}


def layer(value: Any, port: Any) -> Any:
  """Returns the layer whose features are evaluated; None, the output, is no key that is missing."""
  return value


def key_of_captions(value: Any, port: Any) -> Any:
  """Returns where the captions of an example are, the parts of a key."""
  return value if isinstance(value, str) else tuple(value)


def zeroshot_datasets(port: Any, names: Mapping[str, str]) -> Any:
  """Returns the data sets of zero-shot classification where none are given."""
  return _DATASETS if _type(port) == _ZEROSHOT else DROP


def first_name(port: Any, names: Mapping[str, str]) -> Any:
  """Returns that the first of a class's names counts."""
  return True if _type(port) == _ZEROSHOT else DROP


def class_names(value: Any, port: Any) -> Any:
  """Returns the names of classes if they are listed; those of the data set and CLIP's are what data sets have here."""
  return DROP if isinstance(value, str) else tuple(tuple(each.split(",")) for each in value)


def templates(value: Any, port: Any) -> Any:
  """Returns the prompts of zero-shot classification by their sets there.

  Raises:
    Unportable: there is no such set.
  """
  sets = {"clip_paper": "imagenet", "clip_best": "imagenet_best", "class_name_only": "name"}
  if value not in sets:
    raise Unportable(f"there are no prompts {value!r} here; give the list in config.evals.NAME.templates")
  found = prompts.read_templates(sets[value], "templates")
  return tuple(found) if "{}" in found else (*found, "{}")


def default_templates(port: Any, names: Mapping[str, str]) -> Any:
  """Returns the prompts of zero-shot classification where none are given."""
  return templates("clip_paper", port) if _type(port) == _ZEROSHOT else DROP


def overrides(value: Any, port: Any) -> Any:
  """Returns the data sets of zero-shot classification that differ from what all of them have.

  Raises:
    Unportable: an override that no data set has here.
  """
  found = {}
  for name, given in dict(value).items():
    options = dict(given)
    data = {key: options.pop(old) for key, old in _OF_DATA if old in options}
    of_data = {"data": {"name": name, "split": "test", **data}} if data else {}
    if isinstance(options.get("class_names"), str):  # Where the names come from; here the data set has its own.
      del options["class_names"]
    if "prompt_templates" in options:
      options["templates"] = templates(options.pop("prompt_templates"), port)
    if unknown := sorted(set(options) - {"class_names", "templates", "pp_img", "pp_txt"}):
      raise Unportable(f"{', '.join(unknown)} of {name} has no counterpart here")
    found[name] = of_data | options
  return found


_OF_DATA = (("name", "dataset_name"), ("split", "split"), ("data_dir", "data_dir"))


def distances(value: Any, port: Any) -> Any:
  """Returns the distances of an evaluation, each its kind with its arguments."""
  return tuple(dict(each) for each in value)


def outfile(value: Any, port: Any) -> str:
  """Returns the name of a file that an evaluation writes into the workdir; the step is in the name of its folder."""
  return re.sub(r"[-_]?\{.*?\}", "", value.rpartition("/")[2])


def _type(port: Any) -> str | None:
  return (port.get(port.path[:2]) or {}).get("type")
