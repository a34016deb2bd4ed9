"""Zero-shot accuracy is NumPy's in double precision, whatever the batch size leaves over; mistakes are one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.data.columns import bytes_column
from core.data.sources import digit_captions
from core.errors import UserError
from core.evaluators import zeroshot
from core.pp import builder
from core.recipe.evaluators import Zeroshot
from core.recipe.parse import parse
from core.testing import compilation, linear_image_text

jax.config.update("jax_num_cpu_devices", 8)

PATH = r"^config\.evals\.test"  # How every line begins.

DATA = dict(source="digit_captions", split="test", digits=1)
DIGITS = dict(data=DATA, class_names=digit_captions.DIGITS, templates=digit_captions.DIGIT_PROMPTS)
BASE = dict(type="zeroshot", pp_img=linear_image_text.PP_IMG, pp_txt=linear_image_text.PP_TXT, batch_size=64)

quick_compilation = compilation.quick(scope="function")


def evaluator(datasets, predict=None, **options):
  return linear_image_text.evaluator(BASE | dict(datasets=datasets) | options, predict)


def scores(templates=digit_captions.DIGIT_PROMPTS):
  """Of each image and digit, in double precision."""
  z = [linear_image_text.texts([template.format(name) for template in templates]) for name in digit_captions.DIGITS]
  classes = np.stack([each.mean(axis=0) / np.linalg.norm(each.mean(axis=0)) for each in z])
  return linear_image_text.images("test", digits=1) @ classes.T


def labels():
  return digit_captions.load(split="test", digits=1).arrays["label"]


@pytest.mark.parametrize("batch_size", [8, 104, 1024])
def test_accuracy_is_numpys_at_any_batch_size(batch_size):
  evaluation = evaluator({"digits": DIGITS}, batch_size=batch_size)
  evaluation.check(linear_image_text.variables())
  found = evaluation.run(linear_image_text.variables())
  ranked = np.argsort(-scores(), axis=1, kind="stable")
  assert found == {
    "digits/accuracy": (ranked[:, 0] == labels()).mean(),
    "digits/accuracy@5": (ranked[:, :5] == labels()[:, None]).any(axis=1).mean(),
  }
  assert 0 < found["digits/accuracy"] < found["digits/accuracy@5"] < 1


def test_the_published_name_and_pred_are_taken():
  options = dict(type="proj.image_text.discriminative_classifier", pred="predict")
  assert evaluator({"digits": DIGITS}, **options).run(linear_image_text.variables())
  other = {**linear_image_text.PREDICT, "image": None, "of_image": linear_image_text.PREDICT["image"]}
  options = dict(pred=dict(image="of_image", text="text"))
  assert evaluator({"digits": DIGITS}, other, **options).run(linear_image_text.variables())


def test_texts_that_data_sets_share_are_embedded_once():
  calls = []

  def counted(variables, batch):
    jax.debug.callback(lambda: calls.append(1))
    return linear_image_text.PREDICT["text"](variables, batch)

  two = {"a": DIGITS, "b": DIGITS | dict(data=DATA | dict(split="test_templates"))}
  predict = {**linear_image_text.PREDICT, "text": counted}
  evaluator(two, predict, batch_size=8).run(linear_image_text.variables())
  jax.effects_barrier()
  once = len(calls)
  calls.clear()
  evaluator({"a": DIGITS}, predict, batch_size=8).run(linear_image_text.variables())
  jax.effects_barrier()
  assert once == len(calls) > 0


@pytest.fixture(scope="module")
def several_labels(tmp_path_factory):
  """Images of one digit, some with another label beside it, some with none."""
  path = tmp_path_factory.mktemp("data") / "real.npz"
  rows = digit_captions.load(split="test", digits=1).arrays
  more = np.stack([rows["label"], (rows["label"] + 1) % 10], axis=1)
  more[1::3, 1] = -1
  more[2::3] = -1
  np.savez(path, image=rows["image"], real_label=more)
  return path, more


def test_any_of_several_labels_counts_and_an_example_without_one_does_not(several_labels):
  path, more = several_labels
  real = DIGITS | dict(data=dict(source="arrays", path=str(path)), label_key="real_label", several_labels=True)
  found = evaluator({"real": real}).run(linear_image_text.variables())
  best = scores().argmax(axis=1)
  right = (more == best[:, None]).any(axis=1)[(more >= 0).any(axis=1)]
  assert found["real/accuracy"] == right.mean()


def test_a_known_data_set_may_be_changed_and_options_serve_all():
  found = evaluator({"digits": dict(data=DATA, templates=digit_captions.DIGIT_PROMPTS)}, dataset_names=["digits"])
  assert found.run(linear_image_text.variables())["digits/accuracy"] == (scores().argmax(axis=1) == labels()).mean()
  alike = {"digits": dict(data=DATA), "again": dict(data=DATA)}
  found = evaluator(alike, class_names=digit_captions.DIGITS, templates="name").run(linear_image_text.variables())
  right = (scores(["{}"]).argmax(axis=1) == labels()).mean()
  assert found["digits/accuracy"] == found["again/accuracy"] == right


def test_the_names_of_a_sources_classes_serve_where_none_are_given():
  data = dict(source="digit_captions", split="test")
  found = evaluator({"all": dict(data=data, templates=["the digits {}"])})
  assert found.run(linear_image_text.variables())["all/accuracy"] < 0.1
  found = evaluator({"all": dict(data=data, templates=["the digits {}"], class_names=digit_captions.CLASS_NAMES)})
  assert found.run(linear_image_text.variables())["all/accuracy"] < 0.1


def test_other_names_of_a_class_are_left_out_where_the_first_alone_is_asked_for():
  aliases = [[name, "no digit at all"] for name in digit_captions.DIGITS]
  asked = {}
  for only, given in ((True, aliases), (False, aliases), (False, digit_captions.DIGITS)):
    options = parse(Zeroshot, dict(
      pp_img="", pp_txt="", datasets={"digits": DIGITS | dict(class_names=given)}, first_class_name_only=only
    ))  # fmt: skip
    asked[only, len(given[0])] = zeroshot.read_prompts(options.sets()["digits"], options, "digits", "config.evals.test")
  first, every, alone = asked.values()
  assert first == alone
  assert len(every.texts) == 2 * len(first.texts)


def test_prompts_are_canonical_unless_told_otherwise():
  shouting = DIGITS | dict(templates=["The digit,  {}!"])
  plain = evaluator({"digits": DIGITS | dict(templates=["the digit {}"])}).run(linear_image_text.variables())
  assert evaluator({"digits": shouting}).run(linear_image_text.variables()) == plain


def test_texts_may_be_rendered_to_images():
  pp = "render_text((16,96))|value_range(-1,1,key='labels')|keep('labels')"
  weights = np.random.default_rng(2).normal(size=(16 * 96 * 3, 8)).astype(np.float32)
  flat = lambda x: x.reshape(x.shape[0], -1)
  text = lambda variables, batch: (flat(batch["labels"]) @ weights, {})
  found = evaluator({"digits": DIGITS}, {**linear_image_text.PREDICT, "text": text}, pp_txt=pp).run(
    linear_image_text.variables()
  )
  z = []
  for name in digit_captions.DIGITS:
    written = bytes_column([template.format(name) for template in digit_captions.DIGIT_PROMPTS])
    each = flat(builder.get_batched_fn(pp)({"text": written})["labels"]).astype(np.float64) @ weights
    mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(axis=0)
    z.append(mean / np.linalg.norm(mean))
  best = (linear_image_text.images("test", digits=1) @ np.stack(z).T).argmax(axis=1)
  assert found["digits/accuracy"] == (best == labels()).mean()


def test_batches_hold_both_sides_for_whoever_initializes_a_model():
  batch = next(iter(evaluator({"digits": DIGITS}).data))
  assert batch["image"].shape == (64, 16, 16, 3)
  assert batch["labels"].shape == (64, 12)


def test_an_interrupted_evaluation_gives_nothing():
  assert evaluator({"digits": DIGITS}).run(linear_image_text.variables(), interrupted=lambda: True) is None


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(datasets={}), ".dataset_names must name a data set where datasets has none"),
    (
      dict(dataset_names=["imagenet2021"]),
      ".dataset_names names no data set 'imagenet2021' .did you mean 'imagenet2012'",
    ),
    (dict(datasets={"a": dict(data=DATA, class_names=["x"])}), ".datasets.a.templates is missing"),
    (
      dict(datasets={"a": DIGITS | dict(templates=["a photo"])}),
      ".datasets.a.templates: 'a photo' must have one {}",
    ),
    (
      dict(datasets={"a": DIGITS | dict(template="name")}),
      ".datasets.a.template is no key .*'templates'",
    ),
    (dict(datasets={"a": dict(templates="name")}), ".datasets.a.data is missing"),
    (
      dict(datasets={"a": dict(data=dict(name="digits", split="test"), templates="name")}),
      ".datasets.a.class_names is missing",
    ),
    (dict(datasets={"a": DIGITS | dict(label_key="lable")}), ": the preprocessing must leave 'lable'"),
    (dict(pred="text"), ".pred must be 'predict' or a dict, got 'text'"),
    (
      dict(pred=dict(image="imgae", text="text")),
      ".pred.image: the task has no prediction 'imgae' .did you mean 'image'",
    ),
    (dict(datasets={"a": DIGITS | dict(pp_img="value_rnge(0,1)")}), ".datasets.a.pp_img: pp op"),
    (dict(datasets={"a": DIGITS | dict(pp_txt="lower(")}), ".datasets.a.pp_txt must be ops joined by"),
    (
      dict(datasets={"a": DIGITS | dict(class_names=["x", ["y", 3]])}),
      r".datasets.a.class_names\[1\]\[1\] must be",
    ),
    (
      dict(datasets={"a": dict(data=DATA)}, class_names="imagnet", templates="name"),
      ".class_names: ",
    ),
    (dict(pp_txt="keep('text')"), ": the preprocessing must leave 'labels'"),
    (dict(pp_txt="lower"), ".pp_txt: pp op keep: no key 'labels'"),
  ],
)
def test_a_mistake_is_one_line(options, words):
  with pytest.raises(UserError, match=PATH + words):
    evaluator(**(dict(datasets={"digits": DIGITS}) | options)).check(linear_image_text.variables())


def test_what_does_not_fit_is_refused_before_the_first_step():
  few = evaluator({"digits": DIGITS | dict(class_names=digit_captions.DIGITS[:7])})
  with pytest.raises(
    UserError,
    match=PATH + r".datasets.digits: \d+ examples have labels outside of 0 to 6; there are 7 class names",
  ):
    few.check(linear_image_text.variables())
  wide = {**linear_image_text.PREDICT, "image": lambda variables, batch: (jnp.zeros((64, 3)), {})}
  with pytest.raises(UserError, match=PATH + r".pred gives images embeddings of size 3, texts of size 8"):
    evaluator({"digits": DIGITS}, wide).check(linear_image_text.variables())
  whole = {**linear_image_text.PREDICT, "image": lambda variables, batch: (batch["image"], {})}
  with pytest.raises(UserError, match=PATH + r".pred must give embeddings \[batch, dim\] of images, not of shape"):
    evaluator({"digits": DIGITS}, whole).check(linear_image_text.variables())


def test_labels_with_fractions_are_refused_and_not_cut():
  halves = DIGITS | dict(pp_img="value_range(0, 1, 0, 2, key='label')")
  with pytest.raises(UserError, match=PATH + r".datasets.digits has labels of float32; a label is a whole number"):
    evaluator({"digits": halves}).check(linear_image_text.variables())


def test_labels_are_checked_to_the_last_example():
  last = DIGITS | dict(class_names=digit_captions.DIGITS[:9], data=DATA | dict(split="test[:9]+test[9:10]"))
  with pytest.raises(UserError, match="outside of 0 to 8"):
    evaluator({"digits": last}, batch_size=8).run(linear_image_text.variables())


def test_imagenets_v2_and_real_ask_the_text_side_what_imagenet_does():
  names = ("imagenet2012", "imagenet_v2", "imagenet2012_real")
  options = Zeroshot(pp_img="", pp_txt="", dataset_names=names)
  asked = {zeroshot.read_prompts(each, options, name, "x") for name, each in options.sets().items()}
  assert len(asked) == 1
  assert len(asked.pop().texts) == 7_000
