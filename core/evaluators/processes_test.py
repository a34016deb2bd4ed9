"""Two processes of four devices evaluate as one process with eight does."""

import json
import socket

import jax
import numpy as np

from core.data.sources import digit_captions
from core.testing import compilation, linear_classifier, linear_image_text, trainer

jax.config.update("jax_num_cpu_devices", 8)

PAIR = dict(train=dict(name="digits", split="train[:500]"), test=dict(name="digits", split="test"))
CHILD = """
import json, pathlib, sys
import jax
from core.evaluators import processes_test
port, number, folder = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)
jax.distributed.initialize(f"localhost:{port}", 2, int(number))
print(json.dumps(processes_test.evaluate_all(pathlib.Path(folder))))
"""

quick_compilation = compilation.quick(scope="function")


def evaluate_all(folder):
  """The metrics of each type of evaluator; `folder` takes the files. 360 examples leave a batch of 104 half empty."""
  one = dict(data=dict(name="digits", split="test"), batch_size=104)
  several = dict(datasets=dict(digits=PAIR), batch_size=104)
  several |= dict(pp_train=linear_classifier.IMAGES_AND_LABELS, pp_eval=linear_classifier.IMAGES_AND_LABELS)
  onehot = "value_range(0,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
  configs = dict(
    agreement=one
    | dict(pp_fn=linear_classifier.IMAGES_AND_LABELS, pred=dict(student="predict", teacher="predict"))
    | dict(layer=dict(student="pre_logits", teacher="encoder/block00/rows")),
    classification=one | dict(pp_fn=onehot, per_class=True),
    fewshot=several | dict(shots=5, num_seeds=2, l2_reg=(1.0, 1024.0)),
    knn=several | dict(k=20),
    mean=one | dict(pp_fn=linear_classifier.IMAGES_AND_LABELS),
    save=one | dict(pp_fn=linear_classifier.IMAGES_AND_LABELS, outputs=("output", "batch/label")),
  )

  found = {}
  for kind, config in configs.items():
    predict = total_of_pixels if kind == "mean" else linear_classifier.predict
    evaluation = linear_classifier.evaluator(config | dict(type=kind), predict, output_dir=folder / kind)
    evaluation.check(linear_classifier.variables())
    found[kind] = evaluation.run(linear_classifier.variables())
  return found | evaluate_two_sides()


def total_of_pixels(variables, batch):
  return {"total": linear_classifier.predict(variables, batch)[1]["encoder"]["block01"]["total"]}


def evaluate_two_sides():
  """The metrics of each type that compares images with texts; 90 images leave the second process less than a batch."""
  data = dict(source="digit_captions", split="test[:90]")
  sides = dict(pp_img=linear_image_text.PP_IMG, pp_txt=linear_image_text.PP_TXT, batch_size=64)
  digits = dict(data=data | dict(digits=1), class_names=digit_captions.DIGITS, templates=digit_captions.DIGIT_PROMPTS)
  pp = "value_range(-1,1)|bert_tokenize(12, 'digit_words', inkey='caption', outkey='labels')|keep('image','labels')"
  configs = dict(
    zeroshot=sides | dict(datasets=dict(digits=digits)),
    retrieval=sides | dict(data=data),
    contrastive=dict(data=data, pp_fn=pp, batch_size=64),
  )
  found = {}
  for kind, config in configs.items():
    evaluation = linear_image_text.evaluator(config | dict(type=kind))
    evaluation.check(linear_image_text.variables())
    found[kind] = evaluation.run(linear_image_text.variables())
  return found


def test_two_processes_give_the_numbers_and_files_of_one(tmp_path):
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = str(listener.getsockname()[1])
  processes = [trainer.start_code(CHILD, port, str(number), str(tmp_path / "two")) for number in range(2)]
  outputs = [process.communicate(timeout=240)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  want = evaluate_all(tmp_path / "one")
  for output in outputs:
    found = json.loads(output.splitlines()[-1])
    assert found.keys() == want.keys()
    for kind, metrics in want.items():
      assert list(found[kind]) == list(metrics)
      np.testing.assert_allclose(list(found[kind].values()), list(metrics.values()), rtol=1e-6, err_msg=kind)
  table = "classification/test/per_class.csv"
  assert (tmp_path / "two" / table).read_bytes() == (tmp_path / "one" / table).read_bytes()
  files = [np.load(tmp_path / run / "save/test/outputs.npz") for run in ("one", "two")]
  assert files[0].files == files[1].files
  for name in files[0].files:
    np.testing.assert_allclose(files[0][name], files[1][name], rtol=1e-5, atol=1e-6)
