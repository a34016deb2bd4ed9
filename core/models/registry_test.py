"""What all models have in common: the names of the recipe, and the form of their modules."""

import pytest

from core.errors import UserError
from core.models import registry
from core.recipe.models import registry as recipes
from core.recipe.parse import parse

MODULES = sorted({module.__name__.rpartition(".")[2]: module for module in registry.MODELS.values()}.items())


@pytest.mark.parametrize("name", recipes.MODELS)
def test_every_name_of_the_recipe_is_the_module_with_its_options(name):
  assert registry.get(name).Options is recipes.MODELS[name]


def test_there_are_no_other_names():
  assert set(registry.MODELS) == set(recipes.MODELS)
  with pytest.raises(UserError, match=r"^config\.model_name: there is no 3 \(nearest: "):
    registry.get(3)


@pytest.mark.parametrize("name, module", MODULES)
def test_a_model_of_keywords_and_one_of_options_are_the_same(name, module):
  options = parse(module.Options, {}, "model")
  assert module.Model() == module.make(None, options)
  assert module.Model().options == options
  if "tower" not in name:
    assert module.Model(7).num_classes == 7


@pytest.mark.parametrize("name, module", MODULES)
@pytest.mark.parametrize("keywords", [dict(widt=3), dict(name_=3), {"dtype_mm": 3, "out_dim": []}])
def test_a_wrong_keyword_is_refused_by_its_path(name, module, keywords):
  del name
  with pytest.raises(UserError, match=r"^model\.\w+ "):
    module.Model(**keywords)


@pytest.mark.parametrize("name, module", MODULES)
@pytest.mark.parametrize("num_classes", [True, -1, 1.5, "7", [7]])
def test_a_wrong_number_of_classes_is_refused(name, module, num_classes):
  del name
  with pytest.raises(UserError, match=r"^num_classes[: ]"):
    module.Model(num_classes)
