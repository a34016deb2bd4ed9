"""Options of all models: what a config may say, and what of it is refused by its path."""

import dataclasses
import itertools
import math
import typing

import pytest

from core.errors import UserError
from core.recipe import annotations, words
from core.recipe.models import options as options_lib
from core.recipe.models.load import Load, LoadTwoTowers
from core.recipe.models.registry import LOADS, MODELS
from core.recipe.models.vit import ViT
from core.recipe.parse import parse
from core.recipe.types import OneOf

KINDS = list(dict.fromkeys([*MODELS.values(), *LOADS.values()]))
FIELDS = [(kind, key) for kind in KINDS for key in annotations.keys_of(kind)]
VALUES = [None, True, -1, 0, 2**70, 1.5, math.nan, math.inf, -math.inf, "", "text", b"bytes", object(), int]
VALUES += [[], [None], [1.5], ["text"], [[]], [1, 2, 3, -4], {}, {"a": 1}, {3: 4}, {1}]
# The options for which a value of a form that they take is right.
RIGHT = {
  "dont_load": ["", "text", [], ["text"]],
  "registers": [0],
  "rep_size": [True, 0],
  "bias_init": [-1, 0, 1.5, 2**70],
  "stoch_depth": [0],
  "dropout": [0],
  "temperature_init": [1.5, 2**70],
  "norm_eps": [1.5, 2**70],
  "bottleneck": [1.5],
  "se_ratio": [1.5],
  "alpha": [1.5],
  "width": [1.5],  # Of a ResNet, where it is a factor.
}


def forms(annotation):
  """The types whose values an annotation may take, whatever their bounds."""
  base, markers = annotations.split(annotation)
  if any(isinstance(marker, OneOf) for marker in markers) or dataclasses.is_dataclass(base):
    return {dict}
  if typing.get_origin(base) is typing.Literal:
    return set(map(type, typing.get_args(base)))
  if typing.get_origin(base) is tuple:
    return {list}
  members = typing.get_args(base)
  return set().union(*map(forms, members)) if members else {base} | ({int} if base is float else set())


def fits(kind, key, value):
  taken = forms(annotations.hints(kind)[key])
  if value is None or value is True or isinstance(value, dict):
    return type(value) in taken and value in (None, True, {})
  return type(value) in taken and any(value is right or value == right for right in RIGHT.get(key, ()))


@pytest.mark.parametrize("kind, key", FIELDS, ids=[f"{kind.__name__}.{key}" for kind, key in FIELDS])
@pytest.mark.parametrize("where", ["model", "config.model"])
def test_a_value_that_does_not_fit_is_one_line_with_its_path(kind, key, where):
  for value in VALUES:
    if fits(kind, key, value):
      continue
    with pytest.raises(UserError) as error:
      parse(kind, {key: value}, where)
    line = str(error.value)
    assert line.startswith(f"{where}.{key}"), line
    assert "\n" not in line
    assert len(line) <= 300


@pytest.mark.parametrize("kind, key", FIELDS, ids=[f"{kind.__name__}.{key}" for kind, key in FIELDS])
def test_a_key_that_is_misspelt_is_refused_with_the_right_one(kind, key):
  with pytest.raises(UserError, match=rf"^model\.{key}z is no key of {kind.TITLE} \(did you mean '{key}'\?\)"):
    parse(kind, {f"{key}z": 1}, "model")


def test_what_fits_is_taken():
  """`VALUES` hold right ones too, and the test above tells them by more than that they are refused."""
  taken = [(kind, key, value) for (kind, key), value in itertools.product(FIELDS, VALUES) if fits(kind, key, value)]
  assert len(taken) > 50
  for kind, key, value in taken:
    parse(kind, {key: value}, "model")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_option_is_said_in_words(kind):
  documented = words.documentation(kind)
  assert {key for key in annotations.keys_of(kind) if documented.get(key)} == set(annotations.keys_of(kind))


@pytest.mark.parametrize("value", [None, [], "text", 3, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_section_that_is_no_dict_is_refused(kind, value):
  with pytest.raises(UserError, match=r"^config\.model must be a dict, got "):
    parse(kind, value, "config.model")


def test_a_variant_fills_in_what_is_not_stated():
  found = parse(ViT, dict(variant="S/8", depth=3))
  assert (found.width, found.depth, found.mlp_dim, found.num_heads, found.patch_size) == (384, 3, 1536, 6, (8, 8))
  assert found.stated == {"variant", "depth"}
  assert parse(ViT, dict(variant=None)) == ViT()


def test_options_are_told_by_what_they_are_and_not_by_what_was_stated():
  assert parse(ViT, dict(gelu="tanh")) == ViT()
  assert hash(parse(ViT, dict(gelu="tanh"))) == hash(ViT())


def test_options_can_be_changed_and_are_checked_again():
  found = options_lib.changed(parse(ViT, dict(variant="S/16", gelu="exact")), dict(patch_size=8), "config.pred_kw")
  assert (found.width, found.patch_size, found.gelu) == (384, (8, 8), "exact")
  assert found.stated == {"variant", "gelu", "patch_size"}
  for changes, line in (
    (dict(widht=3), "config.pred_kw.widht is no key of the model vit (did you mean 'width'?)"),
    (dict(width=3), "config.pred_kw.width must be a multiple of num_heads, 12, got 3"),
    (3, "config.pred_kw must be a dict, got 3"),
  ):
    with pytest.raises(UserError) as error:
      options_lib.changed(ViT(), changes, "config.pred_kw")
    assert str(error.value) == line


def test_towers_are_chosen_by_the_names_beside_them():
  found = parse(MODELS["two_towers"], dict(text_model="bert", text=dict(config="large"), out_dim=[None, 8]))
  assert (type(found.image), type(found.text)) == (MODELS["vit"], MODELS["bert"])
  assert (found.text.width, found.out_dim) == (1024, (None, 8))
  with pytest.raises(UserError, match=r"^config\.model\.text\.pool_type is no key of the model bert"):
    parse(MODELS["two_towers"], dict(text_model="bert", text=dict(pool_type="last")), "config.model")


def test_heads_of_towers_start_with_random_weights():
  found = parse(MODELS["two_towers"], dict(out_dim=(None, 8), text_model="bert"))
  assert (found.image.head_zeroinit, found.text.head_zeroinit) == (True, False)
  with pytest.raises(UserError, match=r"^config\.model\.text\.head_zeroinit must not be True: .* have no direction$"):
    parse(MODELS["two_towers"], dict(text=dict(head_zeroinit=True)), "config.model")


@pytest.mark.parametrize("patterns", ["head/.*", ["head/.*"]])
def test_one_regex_is_a_list_of_one(patterns):
  assert parse(Load, dict(dont_load=patterns)).dont_load == ("head/.*",)


def test_towers_load_as_their_own_sections_say():
  found = parse(LOADS["proj.image_text.two_towers"], dict(img_load_kw=dict(dont_load=["head/.*"])))
  assert found == LoadTwoTowers(img_load_kw=Load(dont_load=("head/.*",)))
  with pytest.raises(UserError, match=r"^config\.model_load\.txt_load_kw is no key of a tower's loading"):
    parse(LOADS["one_tower"], dict(txt_load_kw={}), "config.model_load")
