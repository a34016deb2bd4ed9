"""A whole run of a model with batch normalization: evaluated by the running averages, stopped, resumed, saved."""

import jax
import numpy as np

from core import trees
from core.checkpoint import pretrained
from core.data.sources import digits
from core.testing import trainer
from core.testing.batch_norm_resnet import BatchNormResNet
from core.testing.models_with_collections import Autoencoder, Resnet, recipe
from core.training import loop

jax.config.update("jax_num_cpu_devices", 2)

# One of the processes of a job: it trains both models, the batches divided among the processes.
PROCESS = """
import pathlib, sys
import jax
_, coordinator, index, folder = sys.argv
jax.distributed.initialize(coordinator, num_processes=2, process_id=int(index))
from core.testing.models_with_collections import Autoencoder, Resnet, recipe
from core.training import loop
for kind in (Resnet, Autoencoder):
  loop.run(kind(), recipe(total_steps=4, ckpt_steps=4), pathlib.Path(folder, kind.__name__))
"""
PP = "value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"


def options():
  test = dict(data=dict(name="digits", split="test[:50]"), pp_fn=PP, batch_size=50, log_steps=4)
  return recipe(
    total_steps=8,
    log_training_steps=1,
    ckpt_steps=4,
    evals=dict(test=test),
    ema=dict(decay=0.9),
    wd=1e-3,
    optax_name="scale_by_adam",
    lr=0.01,
  )


def test_a_run_with_collections_is_evaluated_with_them_resumes_to_the_bit_and_saves_them(tmp_path):
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  results = loop.run(Resnet(), options(), whole)
  loop.run(Resnet(), options(), stopped)
  (stopped / "checkpoints" / "8").rename(tmp_path / "newest")  # As if killed before its second checkpoint.
  (stopped / "params.npz").unlink()
  loop.run(Resnet(), options(), stopped)
  assert trainer.differences(whole, stopped) == []
  assert (stopped / "params.npz").read_bytes() == (whole / "params.npz").read_bytes()
  state = trainer.final_state(whole)
  assert not any("batch_stats" in name for name in state if name.startswith("opt_state"))

  # The files hold the averages as training left them, beside the parameters and beside the average of these.
  saved = {name: pretrained.load_variables(str(whole / f"{name}.npz")) for name in ("params", "params_ema")}
  for variables in saved.values():
    stats = dict(trees.flatten_with_names(variables["batch_stats"]))
    assert stats["stem_norm/mean"].any()
    for name, array in stats.items():
      np.testing.assert_array_equal(array, state[f"collections/batch_stats/{name}"])
  assert not np.array_equal(*(variables["params"]["head"]["kernel"] for variables in saved.values()))

  # What the evaluators found is what the model says with them.
  arrays = digits.load(split="test[:50]").arrays
  images = arrays["image"].astype(np.float32) / 127.5 - 1
  model = BatchNormResNet(num_classes=10, widths=(4,))
  for name, variables in {"test": saved["params"], "test_ema": saved["params_ema"]}.items():
    logits, _ = jax.jit(model.apply)(variables, images.reshape(50, 8, 8, 1))
    accuracy = np.mean(np.argmax(logits, axis=1) == arrays["label"])
    np.testing.assert_allclose(results[f"{name}/prec@1"], accuracy, atol=1e-6)


def test_two_processes_keep_the_collections_of_one(tmp_path):
  coordinator = f"localhost:{trainer.free_port()}"
  job = [trainer.start_code(PROCESS, coordinator, str(index), str(tmp_path / "two")) for index in range(2)]
  outputs = [process.communicate(timeout=120)[0] for process in job]
  assert [process.returncode for process in job] == [0, 0], outputs
  for kind, collection in ((Resnet, "batch_stats"), (Autoencoder, "codebook")):
    loop.run(kind(), recipe(total_steps=4, ckpt_steps=4), tmp_path / "one" / kind.__name__)
    one, two = (trainer.final_state(tmp_path / name / kind.__name__) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert any(name.startswith(f"collections/{collection}/") for name in one)
    for name, array in one.items():
      np.testing.assert_allclose(two[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
