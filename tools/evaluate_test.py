"""The evaluation program: what timm finds, on timm's weights; what the run itself found, on its checkpoints."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from core import data_files
from core.checkpoint import pretrained
from core.recipe import load
from core.testing import tiny_towers, trainer
from core.training import cli, loop
from projects.vit.train import TASK
from tools import evaluate

WEIGHTS = Path("core/models/witness")
# The models in core/models/witness/generate_*.py, by our options.
VIT = dict(width=24, depth=2, mlp_dim=48, num_heads=2, patch_size=8, pool_type="tok", gelu="exact")
MIXER = dict(patch_size=8, hidden_dim=32, num_blocks=2, tokens_mlp_dim=24, channels_mlp_dim=64, gelu="exact")
MODELS = {
  "vit": ("vit_foreign", "vit/state_dict/", VIT),
  "mixer": ("mixer_timm", "state_dict/", MIXER),
  "resnet": ("resnet_timm", "state_dict/", dict(width=0.5, depth=(2, 1))),
}
CONFIG = """
from core import config as config_lib

def get_config(arg=None):
  pp = "value_range(-1,1)|onehot(7,key='label',key_result='labels')|keep('image','labels')"
  data = dict(source="arrays", path={data!r})
  return config_lib.ConfigDict(dict(
    num_classes=7, model_name={name!r}, model={model!r}, optax_name="scale_by_adam", lr=1e-3, total_steps=1,
    loss="softmax_xent", input=dict(data=data, pp=pp, batch_size=32),
    evals=dict(images=dict(type="classification", data=data, pp_fn=pp, batch_size=32)),
  ))
"""


@pytest.fixture(scope="module")
def images():
  with np.load(data_files.find("tools/witness/evaluate_timm.npz")) as file:
    return dict(file)


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_timm_have_the_top_1_that_timm_gives_them(name, images, tmp_path, capsys):
  file, prefix, model = MODELS[name]
  with np.load(WEIGHTS / f"{file}.npz") as stored:
    state_dict = {key.removeprefix(prefix): stored[key].astype(np.float32) for key in stored if key.startswith(prefix)}
  safetensors.numpy.save_file(state_dict, tmp_path / "model.safetensors")
  np.savez(tmp_path / "data.npz", image=images["image"], label=images[f"{name}/label"])
  config = CONFIG.format(data=str(tmp_path / "data.npz"), name=name, model=model)
  (tmp_path / "config.py").write_text(config)
  output = tmp_path / "out.json"
  arguments = [f"--config={tmp_path / 'config.py'}", "--project=vit", f"--weights={tmp_path / 'model.safetensors'}"]
  assert evaluate.main([*arguments, f"--output={output}"]) == 0
  (found,) = json.loads(output.read_text())["results"]
  assert found["images/prec@1"] == images[f"{name}/top1"]
  assert "images/prec@1" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  small = [("model.depth", "1"), ("model.width", "16"), ("model.num_heads", "2"), ("model.mlp_dim", "32")]
  steps = [("total_steps", "4"), ("ckpt_steps", "2"), ("evals.test.log_steps", "2"), ("ema.decay", "0.5")]
  task, recipe = cli.read_recipe(TASK, load.read("projects/vit/configs/digits.py", small + steps))
  loop.run(task(recipe), recipe, workdir, project="vit", name="digits")
  return workdir


def test_all_checkpoints_of_a_run_give_what_the_run_itself_found(run):
  assert evaluate.main([f"--workdir={run}", "--steps=all"]) == 0
  results = {found.pop("weights"): found for found in json.loads((run / "evaluate.json").read_text())["results"]}
  assert list(results) == ["step 2", "step 2 ema", "step 4", "step 4 ema"]
  logged = {line["step"]: line for line in trainer.repeatable_metrics(run) if "test/loss" in line}
  averaged = {line["step"]: line for line in trainer.repeatable_metrics(run) if "test_ema/loss" in line}
  for step in (2, 4):
    assert results[f"step {step}"].items() <= logged[step].items()
    as_raw = {key.replace("test_ema/", "test/"): value for key, value in averaged[step].items()}
    assert results[f"step {step} ema"].items() <= as_raw.items()


def test_a_trained_head_is_evaluated_though_training_began_with_a_fresh_one(run, tmp_path):
  """As of a fine-tuned model, whose config says what of the weights before it was left out (vision_transformer#91)."""
  output = tmp_path / "out.json"
  sizes = ["depth=1", "width=16", "num_heads=2", "mlp_dim=32"]
  arguments = ["--config=projects/vit/configs/digits.py", *(f"--config.model.{size}" for size in sizes)]
  arguments += ["--config.model_init=elsewhere.npz", "--config.model_load={'dont_load': ['head/.*']}"]
  assert evaluate.main([*arguments, f"--weights={run / 'params.npz'}", f"--output={output}"]) == 0
  (found,) = json.loads(output.read_text())["results"]
  found.pop("weights")
  assert found
  assert found.items() <= trainer.repeatable_metrics(run)[-2].items()


def test_an_evaluator_that_the_config_lacks_can_be_added(run, tmp_path):
  datasets = {"digits": {"train": {"name": "digits", "split": "train"}, "test": {"name": "digits", "split": "test"}}}
  pp = "value_range(-1,1)|keep('image','label')"
  knn = {"type": "knn", "datasets": datasets, "pp_train": pp, "pp_eval": pp}
  output = tmp_path / "out.json"
  arguments = [f"--workdir={run}", "--evals=knn", f"--config.evals.knn={knn!r}", f"--output={output}"]
  assert evaluate.main(arguments) == 0
  found, of_average = json.loads(output.read_text())["results"]
  assert found.keys() == of_average.keys() == {"weights", "knn/digits_10nn", "knn/digits_20nn"}


def test_files_of_evaluators_have_a_folder_for_each_of_the_weights(run, tmp_path):
  pp = "value_range(-1,1)|keep('image','label')"
  save = {"type": "save", "data": {"name": "digits", "split": "test"}, "pp_fn": pp, "outputs": ["output"]}
  output = tmp_path / "out.json"
  arguments = [f"--workdir={run}", "--steps=all", "--evals=save", f"--config.evals.save={save!r}"]
  assert evaluate.main([*arguments, f"--output={output}"]) == 0
  files = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.npz"))
  assert [str(file) for file in files] == [
    f"{w}/save/outputs.npz" for w in ("step_2", "step_2_ema", "step_4", "step_4_ema")
  ]
  logits = [np.load(tmp_path / "out" / file)["output"] for file in files]
  assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(logits))


def test_a_model_of_images_and_texts_is_evaluated_on_both(tmp_path):
  config, weights = tiny_towers.write(tmp_path)
  output = tmp_path / "out.json"
  arguments = [f"--config={config}", "--project=siglip", f"--weights={weights}", f"--output={output}"]
  assert evaluate.main(arguments) == 0
  (found,) = json.loads(output.read_text())["results"]
  assert 0 <= found["zeroshot/digits/accuracy"] <= found["zeroshot/digits/accuracy@5"] <= 1
  assert 0 < found["retrieval/img2txt_recall@10"] <= 1


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--weights=x.npz"], "give --config"),
    (["--config=digits", "--weights=x.npz"], "--project is missing"),
    (["--config=projects/vit/configs/digits.py"], "one of --weights=... and --workdir"),
    (["--config=digits", "--project=vti", "--weights=x.npz"], "did you mean 'vit'"),
    (["--config=digits", "--project=vit", "--weights=nowhere.npz"], "nowhere.npz"),
    (["--config=digits", "--project=vit", "--weights=x.npz", "--evals=tset"], "did you mean 'test'"),
    (["--workdir=nowhere"], "holds no run"),
    (["--workdir={run}", "--steps=3"], "no checkpoint '3'; there are 2, 4"),
    (["--wieghts=x.npz"], "did you mean 'weights'"),
  ],
)
def test_a_mistake_is_one_line(arguments, words, run):
  with pytest.raises(evaluate.UserError, match=words):
    evaluate.main([argument.format(run=run) for argument in arguments])


def test_weights_of_another_model_are_refused(run, tmp_path):
  pretrained.save_params(tmp_path / "w.npz", {"head": {"kernel": np.zeros((3, 3))}})
  with pytest.raises(evaluate.UserError, match=r"w\.npz: not the weights of this model"):
    evaluate.main(["--config=projects/vit/configs/digits.py", f"--weights={tmp_path / 'w.npz'}"])


def test_of_more_weights_than_metrics_the_weights_are_rows():
  rows = evaluate.table([{"weights": f"step {n}", "val/prec@1": n / 4} for n in range(3)]).splitlines()
  assert rows == ["        val/prec@1", "step 0       0.00%", "step 1      25.00%", "step 2      50.00%"]
  assert evaluate.table([{"weights": "w", "a": 1.0, "b": 2.0}]).splitlines() == ["   w", "a  1", "b  2"]
