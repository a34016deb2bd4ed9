import numpy as np
import pytest

from core.checkpoint import pretrained
from core.errors import UserError
from core.models import bit, resnet, vit, weights


@pytest.mark.parametrize(
  "old, new",
  [
    (  # An encoder block of the first published ViT files.
      {
        "LayerNorm_0": 1,
        "MultiHeadDotProductAttention_1": 2,
        "LayerNorm_2": 3,
        "MlpBlock_3": {"Dense_0": 4, "Dense_1": 5},
      },
      {
        "LayerNorm_0": 1,
        "MultiHeadDotProductAttention_0": 2,
        "LayerNorm_1": 3,
        "MlpBlock_0": {"Dense_0": 4, "Dense_1": 5},
      },
    ),
    (  # The example in the documentation of flax.training.checkpoints.convert_pre_linen.
      {"Conv_0": {"kernel": 1}, "Dense_1": {"kernel": 2}},
      {"Conv_0": {"kernel": 1}, "Dense_0": {"kernel": 2}},
    ),
    (  # 10 comes after 9, not after 1.
      {f"block_{i}": {"LayerNorm_0": i, "LayerNorm_2": -i} for i in range(12)} | {"encoder_norm": 0},
      {f"block_{i}": {"LayerNorm_0": i, "LayerNorm_1": -i} for i in range(12)} | {"encoder_norm": 0},
    ),
  ],
)
def test_modules_are_renumbered_as_flax_does_for_files_from_before_linen(old, new):
  assert weights.renumber_modules(old) == new
  assert weights.renumber_modules(new) == new


def test_merge_takes_the_file_in_the_dtype_of_the_model_and_keeps_what_is_not_to_load():
  init = {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}
  merged = weights.merge({"a": np.ones(2), "b": np.ones(4), "c": 1}, init, ["b", "c"], source="x.npz")
  assert merged["b"] is init["b"]
  assert merged["a"].dtype == np.float32
  np.testing.assert_array_equal(merged["a"], [1, 1])


@pytest.mark.parametrize(
  "name, options",
  [
    ("BiT-M-R101x3-ILSVRC2012", None),
    ("M-ILSVRC2012", {"variant": "101x3"}),
    ("M-ILSVRC2012", {"variant": "50x3", "depth": 101}),
  ],
)
def test_a_bit_model_completes_a_name_by_its_size(name, options, monkeypatch):
  asked = []

  def load_params(location):
    asked.append(location)
    return {"head": {"bias": np.zeros(3)}}

  monkeypatch.setattr(pretrained, "load_params", load_params)
  loaded = resnet.load({"head": {"bias": np.ones(3)}}, name, options and resnet.Model(**options).options)
  assert asked == ["gs://bit_models/BiT-M-R101x3-ILSVRC2012.npz"]
  np.testing.assert_array_equal(loaded["head"]["bias"], np.zeros(3))


@pytest.mark.parametrize(
  "pattern, line",
  [
    ("haed/.*", "config.model_load.dont_load: 'haed/.*' matches no parameter (nearest: head/"),
    ("head", "config.model_load.dont_load: 'head' matches no parameter (nearest: head/bias, "),
    ("[", "config.model_load.dont_load[0] must be a regular expression, got '[': unterminated character set"),
    (3, "config.model_load.dont_load[0] must be a regular expression, got 3"),
  ],
)
def test_a_regex_that_matches_nothing_or_does_not_compile_is_refused(pattern, line, monkeypatch):
  params = {"head": {"bias": np.zeros(3), "kernel": np.zeros((2, 3))}, "stem": {"kernel": np.zeros(2)}}
  monkeypatch.setattr(pretrained, "load_params", lambda location: params)
  with pytest.raises(UserError) as e:
    bit.load(params, "x.npz", dont_load=["head/.*", pattern] if pattern not in ("[", 3) else [pattern])
  assert str(e.value).startswith(line)


def test_a_regex_may_match_what_the_file_alone_has():
  merged = weights.merge({"a": np.ones(2), "cls": np.ones(4)}, {"a": np.zeros(2)}, ["cls"], source="x.npz")
  np.testing.assert_array_equal(merged["a"], [1, 1])


def test_a_kind_of_gelu_is_asked_for_unless_the_config_states_its_own():
  with pytest.raises(UserError, match=r"^x: its model has gelu='exact', ours 'tanh': set model\.gelu='exact'"):
    weights.check_options({"gelu": "exact"}, vit.Model().options, source="x")
  weights.check_options({"gelu": "exact"}, vit.Model(gelu="tanh").options, source="x")
  weights.check_options({"gelu": "exact"}, None, source="x")
