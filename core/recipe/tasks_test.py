"""What each kind of training reads, and what it refuses by its path."""

import dataclasses

import pytest

from core.errors import UserError
from core.recipe import annotations, distances, tasks
from core.recipe.models.vit import ViT
from core.recipe.parse import parse

COMMON = dict(
  total_steps=3,
  optax_name="scale_by_adam",
  lr=1e-3,
  input=dict(data=dict(name="digits", split="train"), batch_size=8),
)
CLASSIFICATION = COMMON | dict(model_name="vit", model=dict(variant="mu/16"), num_classes=10, loss="softmax_xent")
CONTRASTIVE = COMMON | dict(
  model_name="two_towers", model=dict(image=dict(variant="mu/16"), text=dict(variant="mu")), loss="softmax"
)
DISTILLATION = COMMON | dict(
  num_classes=10,
  student_name="vit",
  student=dict(variant="mu/16"),
  teachers=["prof"],
  prof_name="vit",
  prof=dict(variant="mu/16"),
  prof_init=None,
)
# Of no type that any of the keys has.
NOTHING = (object(), 3j, b"x", {1, 2})


def classification(**changes):
  return parse(tasks.Classification, CLASSIFICATION | changes)


def contrastive(**changes):
  return parse(tasks.Contrastive, CONTRASTIVE | changes)


def distillation(**changes):
  return parse(tasks.Distillation, DISTILLATION | changes)


def without(config, *keys):
  return {key: value for key, value in config.items() if key not in keys}


def test_a_model_is_read_by_its_name_and_so_is_how_its_weights_are_loaded():
  recipe = classification(model_load=dict(dont_load=["head/.*"]), mixup=dict(p=1), init_head_bias=-10)
  assert isinstance(recipe.model, ViT)
  assert (recipe.mixup, recipe.init_head_bias) == (tasks.Mixup(p=1.0), -10.0)
  assert recipe.model_load.dont_load == ("head/.*",)
  towers = contrastive(model_load=dict(txt_load_kw=dict(dont_load=["head/.*"])), model_init=dict(image="a", t="b"))
  assert towers.model_load.txt_load_kw.dont_load == ("head/.*",)
  assert towers.model_init.by_part() == {"image": "a", "t": "b"}
  assert contrastive(model_init="a.npz").model_init == "a.npz"


def test_the_models_of_a_distillation_are_named_by_the_config():
  given = dict(
    teachers=["prof", "dean"], dean_name="mixer", dean_init="dean.npz", student_load=dict(dont_load=["head/.*"])
  )
  found = distillation(**given).models
  assert list(found) == ["student", "prof", "dean"]
  assert (found["student"].name, found["student"].options.width, found["student"].dtype) == ("vit", 32, None)
  assert (found["dean"].name, found["dean"].init, found["dean"].load.dont_load) == ("mixer", "dean.npz", ())
  assert found["student"].load.dont_load == ("head/.*",)
  assert found["dean"].options == parse(
    tasks.IMAGE_MODELS["mixer"], {}
  )  # Options that are left away are the model's own.


def test_a_teacher_computes_in_the_dtype_of_its_parameters_unless_it_states_another():
  half = distillation(prof_dtype="bfloat16")
  assert (half.models["prof"].dtype, half.models["prof"].options.dtype_mm) == ("bfloat16", "bfloat16")
  stated = distillation(prof_dtype="bfloat16", prof=dict(variant="mu/16", dtype_mm="float32"))
  assert (stated.models["prof"].dtype, stated.models["prof"].options.dtype_mm) == ("bfloat16", "float32")
  assert distillation().models["prof"].options.dtype_mm == "float32"


def test_options_of_one_model_can_be_replaced():
  changed = distillation().with_options("student", width=64)
  assert (changed.models["student"].options.width, changed.models["prof"].options.width) == (64, 32)
  assert changed.with_options("student", width=32) == distillation()


@pytest.mark.parametrize(
  "changes, line",
  [
    (dict(model=None), "config.model must be a dict, got None"),
    (dict(model_name="two_towers"), "config.model_name: there is no 'two_towers'"),
    (dict(model_name=["vit"]), "config.model_name must be text that is not empty, got ('vit',)"),
    (dict(model=dict(widht=3)), "config.model.widht is no key of the model vit (did you mean 'width'?)"),
    (dict(num_classes=0), "config.num_classes must be a whole number from 1 on, got 0"),
    (dict(num_classes=True), "config.num_classes must be a whole number from 1 on, got True"),
    (dict(loss="softmax"), "config.loss must be one of 'softmax_xent', 'sigmoid_xent', got 'softmax'"),
    (dict(mixup=dict(p=-0.1)), "config.mixup.p must be a number that is not negative, got -0.1"),
    (dict(mixup=dict(p=float("nan"))), "config.mixup.p must be a number that is not negative, got nan"),
    (dict(mixup=dict(q=1)), "config.mixup.q is no key of mixup"),
    (dict(mixup=0.2), "config.mixup must be a dict, got 0.2"),
    (dict(init_head_bias=float("inf")), "config.init_head_bias must be a number"),
    (dict(model_init=dict(image="a")), "config.model_init must be a path"),
    (dict(model_init=""), "config.model_init must be a path"),
    (dict(model_load=dict(dont_load=["["])), "config.model_load.dont_load[0] must be a regular expression, got '['"),
    (dict(model_load=dict(img_load_kw={})), "config.model_load.img_load_kw is no key of a model's loading"),
    (dict(loss_form="ring"), "config.loss_form is no key of classification"),
    (dict(teachers=["prof"]), "config.teachers is no key of classification"),
  ],
)
def test_a_classification_refuses_what_does_not_fit(changes, line):
  with pytest.raises(UserError) as error:
    classification(**changes)
  assert str(error.value).startswith(line)


@pytest.mark.parametrize(
  "changes, line",
  [
    (dict(model_name="vit"), "config.model_name: there is no 'vit' (known: one_tower, proj.clippo.one_tower, "),
    (dict(model=dict(imgae={})), "config.model.imgae is no key of the model two_towers (did you mean 'image'?)"),
    (dict(loss="sigmiod"), "config.loss must be one of 'softmax', 'sigmoid', got 'sigmiod'"),
    (dict(loss_form="circle"), "config.loss_form must be one of 'plain', 'chunked', 'ring', got 'circle'"),
    (dict(init_shapes=[(1, 16, 16, 3)]), "config.init_shapes must be ((a whole number from 1 on, a whole number"),
    (dict(init_shapes=[(1, 16, 16), (1, 4)]), "config.init_shapes[0] must be (a whole number from 1 on, a whole"),
    (dict(init_shapes=[(1, 16, 16, 3), (1, 0)]), "config.init_shapes[1]"),
    (dict(model_init=3), "config.model_init must be a path"),
    (dict(model_init=dict(imag="a")), "config.model_init.imag is no key of the parts of a model of images and texts"),
    (dict(model_init=dict(image="a", img="b")), "config.model_init.img is given twice, under 'image' too"),
    (dict(model_load=dict(img_load_kw=dict(dont_load=3))), "config.model_load.img_load_kw.dont_load must be"),
    (dict(sam=dict(rho=0.1, perturbation="per_device")), "config.sam.perturbation 'per_device' does not go with a con"),
    (dict(num_classes=10), "config.num_classes is no key of contrastive training"),
    (dict(mixup=dict(p=0.2)), "config.mixup is no key of contrastive training"),
  ],
)
def test_contrastive_training_refuses_what_does_not_fit(changes, line):
  with pytest.raises(UserError) as error:
    contrastive(**changes)
  assert str(error.value).startswith(line)


@pytest.mark.parametrize("model_name", ["two_towers", "one_tower"])
def test_a_softmax_with_a_bias_that_it_would_not_train_is_refused(model_name):
  """Adding the same to every logit changes no softmax, so b would have no gradient."""
  model = dict(image=dict(variant="mu/16"), bias_init=-10.0)
  with pytest.raises(
    UserError, match=r"^config\.model\.bias_init is .* give bias_init=None, or config\.loss='sigmoid'"
  ):
    contrastive(model_name=model_name, model=model)
  assert contrastive(model_name=model_name, model=model, loss="sigmoid").model.bias_init == -10
  assert contrastive(model_name=model_name, model=model | dict(bias_init=None)).model.bias_init is None


@pytest.mark.parametrize("kind, config", [(tasks.Classification, CLASSIFICATION), (tasks.Contrastive, CONTRASTIVE)])
def test_the_loss_must_be_told_where_others_have_another_default(kind, config):
  with pytest.raises(UserError, match=r"^config\.loss is missing; it is the loss of "):
    parse(kind, without(config, "loss"))


def test_a_student_does_not_learn_by_what_has_no_gradient():
  with pytest.raises(UserError, match=r"^config\.distance: there is no 'agree'"):
    distillation(distance="agree")
  assert distillation(distance="hard", distance_kw=dict(ls=0.1)).distance_kw == distances.Hard(ls=0.1)


def test_one_tower_has_no_file_of_texts():
  one = dict(model_name="one_tower", model=dict(image=dict(variant="mu/16")))
  with pytest.raises(UserError, match=r"^config.model_init.text is no part of one_tower"):
    contrastive(**one, model_init=dict(text="a"))


@pytest.mark.parametrize(
  "changes, line",
  [
    (dict(teachers=[]), "config.teachers must name one teacher or more, ['prof'] say, got ()"),
    (dict(teachers="prof"), "config.teachers must be a list of texts, got 'prof'"),
    (dict(teachers=[3]), "config.teachers[0] must be text that is not empty, got 3"),
    (dict(teachers=["prof", "prof"]), "config.teachers 'prof' cannot be a teacher's name; take a word of its own"),
    (dict(teachers=["prof", "lr"], lr_name="vit"), "config.teachers 'lr' cannot be a teacher's name"),
    (dict(teachers=["model"], model_name="vit"), "config.teachers 'model' cannot be a teacher's name"),
    (dict(teachers=["student"]), "config.teachers 'student' cannot be a teacher's name"),
    (dict(teachers=["prof", "prof_name"]), "config.teachers 'prof' cannot be a teacher's name"),
    (dict(teachers=["a teacher"]), "config.teachers 'a teacher' cannot be a teacher's name"),
    (dict(teachers=["prof", "dean"], dean_name="vit"), "config.dean_init is missing: the teacher's weights, a name"),
    (dict(teachers=["prof", "dean"], dean_init=None), "config.dean_name is missing; it is one of 'vit', 'mixer', "),
    (dict(dean_init="x"), "config.dean_init is no key of distillation"),
    (dict(prof_name="vitt"), "config.prof_name: there is no 'vitt' (did you mean 'vit'?)"),
    (dict(prof_name="two_towers"), "config.prof_name: there is no 'two_towers'"),
    (dict(prof_name=3), "config.prof_name must be text that is not empty, got 3"),
    (dict(prof=None), "config.prof must be a dict, got None"),
    (dict(prof=dict(widht=3)), "config.prof.widht is no key of the model vit (did you mean 'width'?)"),
    (dict(prof_init=3), "config.prof_init must be a path"),
    (dict(prof_load=dict(dont_load=["head/.*"])), "config.prof_load.dont_load leaves random numbers in a teacher"),
    (dict(prof_load=dict(dont_load=3)), "config.prof_load.dont_load must be"),
    (dict(prof_dtype="float16"), "config.prof_dtype must be one of 'float32', 'bfloat16'"),
    (dict(student=3), "config.student must be a dict, got 3"),
    (dict(student_dtype="bfloat16"), "config.student_dtype is no key of distillation"),
    (dict(distance="kll"), "config.distance: there is no 'kll' (did you mean 'kl'?)"),
    (dict(distance=None), "config.distance must be text that is not empty, got None"),
    (dict(distance_kw=dict(t=0)), "config.distance_kw.t must be a number above 0, got 0"),
    (dict(distance_kw=dict(t="1")), "config.distance_kw.t must be a number above 0, got '1'"),
    (dict(distance_kw=dict(temperature=2.0)), "config.distance_kw.temperature is no key of the distance kl (known: t)"),
    (dict(distance="hard", distance_kw=dict(t=1.0)), "config.distance_kw.t is no key of the distance hard"),
    (dict(model_name="vit"), "config.model_name is no key of distillation"),
    (dict(loss="softmax_xent"), "config.loss is no key of distillation"),
  ],
)
def test_a_distillation_refuses_what_does_not_fit(changes, line):
  with pytest.raises(UserError) as error:
    distillation(**changes)
  assert str(error.value).startswith(line)


@pytest.mark.parametrize(
  "kind, config, key",
  [
    (tasks.Classification, CLASSIFICATION, "model_name"),
    (tasks.Classification, CLASSIFICATION, "num_classes"),
    (tasks.Contrastive, CONTRASTIVE, "model_name"),
    (tasks.Distillation, DISTILLATION, "teachers"),
    (tasks.Distillation, DISTILLATION, "num_classes"),
    (tasks.Distillation, DISTILLATION, "student_name"),
    (tasks.Distillation, DISTILLATION, "prof_name"),
    (tasks.Distillation, DISTILLATION, "prof_init"),
  ],
)
def test_what_is_missing_is_named(kind, config, key):
  with pytest.raises(UserError, match=rf"^config\.{key} is missing"):
    parse(kind, without(config, key))


def own_keys(kind, config):
  """The keys that a kind of training adds to those that all have, and those that its config brings along."""
  of_all = {field.name for field in dataclasses.fields(tasks.Recipe)}
  names = [field.name for field in dataclasses.fields(kind) if annotations.is_key(field) and field.name not in of_all]
  return [*names, *(kind.extra_keys(config) if hasattr(kind, "extra_keys") else ())]


@pytest.mark.parametrize(
  "kind, config",
  [(tasks.Classification, CLASSIFICATION), (tasks.Contrastive, CONTRASTIVE), (tasks.Distillation, DISTILLATION)],
)
def test_every_key_refuses_what_is_of_no_type_of_a_config(kind, config):
  config = config | ({"teachers": tuple(config["teachers"])} if "teachers" in config else {})
  keys = own_keys(kind, config)
  assert len(keys) > 5
  for key in keys:
    for value in NOTHING:
      with pytest.raises(UserError) as error:
        parse(kind, config | {key: value})
      line = str(error.value)
      assert line.startswith(f"config.{key}"), line
      assert len(line) <= 300
      assert "\n" not in line
