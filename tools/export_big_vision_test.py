import jax
import ml_dtypes
import numpy as np
import pytest

from core import trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.models import two_towers, vit
from core.testing.params import random_like, shapes
from tools import export

SIZES = dict(width=16, depth=2, mlp_dim=32, num_heads=2)
VIT = dict(patch_size=8, pool_type="map", **SIZES)
SIGLIP = dict(image=VIT, text=dict(vocab_size=30, max_len=6, **SIZES), out_dim=(None, 16), bias_init=-10.0)
PP = "decode|resize(32)|value_range(-1,1)"


def read_as_there(path, key=None):
  """Returns what big_vision's `load_params(PATH[:KEY])` gives: arrays of `np.load`, of which `params` are taken.

  Bytes without a name are bfloat16.
  """
  with np.load(path, allow_pickle=False) as arrays:
    named = {name: arrays[name] for name in arrays}
  named = {name: x.view(ml_dtypes.bfloat16) if x.dtype.type is np.void else x for name, x in named.items()}
  params = trees.from_names(named)["params"]
  for part in key.split("/") if key else ():
    params = params[part]
  return params


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(tmp_path))
  return tmp_path


def exported(here, params, **config):
  """Returns the file that is written of these weights."""
  pretrained.save_params(here / "weights.npz", params)
  text = repr(dict(num_classes=None, input=dict(pp=PP)) | config)
  (here / "config.py").write_text(
    f"from core.config import ConfigDict\ndef get_config(arg=None):\n  return ConfigDict({text})\n"
  )
  arguments = ["--config=config.py", "--weights=weights.npz", "--to=big_vision", "--output=out.npz"]
  assert export.main(arguments) == 0
  return here / "out.npz"


def assert_same(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.parametrize("scan", [False, True])
def test_a_vit_is_read_there_as_it_is_here_and_back(here, scan):
  model = vit.Model(7, scan=scan, **VIT)
  params = random_like(shapes(model))
  path = exported(here, params, model_name="vit", model=VIT | dict(scan=scan), num_classes=7)
  assert_same(read_as_there(path), params)
  assert_same(read_as_there(path, "Transformer/encoder_norm"), params["Transformer"]["encoder_norm"])
  assert_same(vit.load(shapes(model), str(path)), params)
  assert pretrained.load_variables(str(path)).keys() == {"params"}


@pytest.mark.parametrize("scan", [False, True])
def test_two_towers_are_read_there_each_by_its_subtree(here, scan):
  options = SIGLIP | {tower: SIGLIP[tower] | dict(scan=scan) for tower in ("image", "text")}
  model = two_towers.Model(**options)
  inputs = (np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 6), np.int32))
  params = random_like(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
  path = exported(here, params, model_name="two_towers", model=options)
  for key in ("img", "txt", "t", "b"):
    assert_same(read_as_there(path, key), params[key])
  assert_same(two_towers.load(params, str(path), model.options), params)


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(registers=4), "it computes otherwise: model.registers=4, there 0"),
    (dict(gelu="exact", norm_eps=1e-5), "model.gelu='exact', there 'tanh'; model.norm_eps=1e-05, there 1e-06"),
  ],
)
def test_a_model_that_it_does_not_have_is_refused(here, changes, words):
  model = vit.Model(7, **VIT | changes)
  with pytest.raises(UserError, match=words):
    exported(here, random_like(shapes(model)), model_name="vit", model=VIT | changes, num_classes=7)
  assert not (here / "out.npz").exists()


def test_positions_that_it_would_take_for_another_grid_are_refused(here):
  model = vit.Model(7, **VIT)
  params = random_like(shapes(model, image=(1, 16, 40, 3)))
  with pytest.raises(UserError, match=r"pos_embedding has 10 positions, of which its reader takes the first"):
    exported(here, params, model_name="vit", model=VIT, num_classes=7, input=dict(pp="decode|resize((16,40))"))


def test_half_precision_keeps_its_bits(here):
  path = here / "half.npz"
  pretrained.save_params(path, {"params": {"w": np.float32([1.5, -2]).astype(ml_dtypes.bfloat16)}})
  assert read_as_there(path)["w"].dtype == ml_dtypes.bfloat16
  assert read_as_there(path)["w"].tolist() == [1.5, -2]
