"""Contrastive loss and accuracy are NumPy's in double precision, of every batch, the last smaller one too."""

import jax
import numpy as np
import pytest
import scipy.special

from core.data.sources import digit_captions
from core.errors import UserError
from core.testing import compilation, linear_image_text

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.

DATA = dict(source="digit_captions", split="test[:203]")
PP_TXT = linear_image_text.PP_TXT.replace(")", ", inkey='caption', outkey='labels')")
PP = f"value_range(-1,1)|{PP_TXT}|keep('image', 'labels')"

quick_compilation = compilation.quick(scope="function")


def evaluator(predict=None, **options):
  return linear_image_text.evaluator(dict(type="contrastive", data=DATA, pp_fn=PP, batch_size=64) | options, predict)


def logits_by_batch(batch_size, bias):
  written = [text.decode() for text in digit_captions.load(split="test[:203]").arrays["caption"]]
  zimg, ztxt = linear_image_text.images("test[:203]"), linear_image_text.texts(written)
  for low in range(0, len(zimg), batch_size):
    rows = slice(low, low + batch_size)
    yield 10.0 * zimg[rows] @ ztxt[rows].T + (linear_image_text.PARAMS["b"][0] if bias else 0.0)


def accuracy(logits):
  """How many rows have nothing as good as the diagonal beside it."""
  rivals = np.where(np.eye(len(logits), dtype=bool), -np.inf, logits)
  # Captions that read alike are tied; in single precision by the last bit.
  return (np.diagonal(logits) > rivals.max(axis=1) + 1e-4).sum()


@pytest.mark.parametrize("batch_size", [64, 208])
def test_softmax_loss_and_accuracy_are_numpys(batch_size):
  found = evaluator(batch_size=batch_size).run(linear_image_text.variables())
  loss = into_text = into_image = 0.0
  for logits in logits_by_batch(batch_size, bias=False):
    lse = scipy.special.logsumexp
    loss += np.sum((lse(logits, axis=1) + lse(logits, axis=0)) / 2 - np.diagonal(logits))
    into_text += accuracy(logits)
    into_image += accuracy(logits.T)
  want = {"loss": loss / 203, "img2txt_acc": into_text / 203, "txt2img_acc": into_image / 203}
  assert found.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_sigmoid_loss_is_numpys():
  found = evaluator(loss_name="sigmoid").run(linear_image_text.variables())
  loss = 0.0
  for logits in logits_by_batch(64, bias=True):
    loss += np.sum(np.log1p(np.exp(-(2 * np.eye(len(logits)) - 1) * logits)))
  np.testing.assert_allclose(found["loss"], loss / 203, rtol=1e-5)


@pytest.mark.parametrize(
  "predict, options, words",
  [
    (None, dict(loss_name="softmx"), ".loss_name must be one of 'softmax', 'sigmoid', got 'softmx'"),
    (
      None,
      dict(pred="image"),
      ".pred must be a prediction .embeddings of images, embeddings of texts, out",
    ),
    (None, dict(pp_fn="value_range(-1,1)|keep('image')"), ": the preprocessing must leave 'labels'"),
    (
      lambda variables, batch: (*linear_image_text.PREDICT["contrastive"](variables, batch)[:2], {"t": 1.0}),
      dict(loss_name="sigmoid"),
      ".loss_name is 'sigmoid', which needs the model's 'b'",
    ),
  ],
)
def test_a_mistake_is_one_line(predict, options, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(predict and {"contrastive": predict}, **options).check(linear_image_text.variables())
