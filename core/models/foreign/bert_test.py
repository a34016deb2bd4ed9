"""BERT against transformers, by what it computed (../witness/generate_text.py)."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from core import data_files, trees
from core.errors import UserError
from core.models import bert
from core.models.foreign import bert as foreign_bert
from core.models.foreign import table
from core.testing import compilation

WITNESS = data_files.find("core/models/witness/text_hf.npz")
TINY = dict(width=24, depth=2, mlp_dim=48, num_heads=2, vocab_size=50, max_len=12)
CASES = {"bert": "exact", "bert_pretraining": "tanh"}

quick_compilation = compilation.quick()


def witness(case):
  """The state dict, config and output of a case, and the texts."""
  with np.load(WITNESS) as file:
    prefix = f"{case}/state_dict/"
    arrays = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return arrays, json.loads(str(file[f"{case}/config"])), file[f"{case}/output"], file["text"]


def folder_of(state_dict, config, folder):
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(state_dict, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(config))
  return str(folder)


def shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 6), jnp.int32))["params"]


@pytest.mark.parametrize("case, gelu", CASES.items())
def test_outputs_are_those_of_transformers(case, gelu, tmp_path):
  state_dict, config, expected, text = witness(case)
  options = TINY | dict(gelu=gelu)
  model = bert.Model(**options)
  params = bert.load(shapes(model), folder_of(state_dict, config, tmp_path), model.options)
  output, _ = jax.jit(model.apply)({"params": params}, text)
  np.testing.assert_allclose(output, expected, atol=1e-4)


def test_another_gelu_or_number_of_heads_is_refused_unless_stated(tmp_path):
  state_dict, config, _, _ = witness("bert")
  path, tree = folder_of(state_dict, config, tmp_path), shapes(bert.Model(**TINY))
  with pytest.raises(UserError, match=r"its model has gelu='exact', ours 'tanh': set model.gelu='exact', or state"):
    bert.load(tree, path, bert.Model(**TINY).options)
  bert.load(tree, path, bert.Model(**TINY, gelu="tanh").options)
  with pytest.raises(UserError, match=r"its model has num_heads=2, ours 4: set model.num_heads=2$"):
    bert.load(tree, path, bert.Model(**TINY | dict(num_heads=4, gelu="exact")).options)
  (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
  with pytest.raises(UserError, match="hidden_act 'relu' is an activation that our BERT lacks"):
    bert.load(tree, path)


def test_names_of_the_first_files_are_known_too(tmp_path):
  state_dict, config, _, _ = witness("bert")
  older = {
    re.sub(
      r"LayerNorm\.bias$", "LayerNorm.beta", re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", f"bert.{name}")
    ): array
    for name, array in state_dict.items()
  }
  older |= {"cls.predictions.bias": np.ones(50, np.float32), "bert.embeddings.position_ids": np.ones((1, 12), np.int64)}
  tree = shapes(bert.Model(**TINY))
  expected = bert.load(tree, folder_of(state_dict, config, tmp_path / "new"))
  got = bert.load(tree, folder_of(older, config, tmp_path / "old"))
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_what_is_written_is_what_was_read(tmp_path):
  """But for the pooler, which our model lacks: one that changes nothing takes its place."""
  state_dict, config, _, _ = witness("bert")
  options = TINY | dict(gelu="exact")
  model, form = bert.Model(**options), foreign_bert.FORMATS["hf"]
  params = bert.load(shapes(model), folder_of(state_dict, config, tmp_path / "in"), model.options)
  written = table.to_foreign(form.writing(model, (0, 0)), dict(trees.flatten_with_names(params)), source="export")
  assert set(written) == set(state_dict)
  for name, array in written.items():
    if "pooler" not in name:
      np.testing.assert_array_equal(array, state_dict[name], err_msg=name)
  np.testing.assert_array_equal(written["pooler.dense.weight"], np.eye(24))
  ours = form.config(model, (0, 0))
  assert {name: config[name] for name in ours if name != "dtype"} == {
    name: value for name, value in ours.items() if name != "dtype"
  }


def test_a_head_is_nothing_that_transformers_has():
  with pytest.raises(UserError, match="has no linear head on its first token; export with num_classes=0"):
    foreign_bert.FORMATS["hf"].writing(bert.Model(16, **TINY), (0, 0))
