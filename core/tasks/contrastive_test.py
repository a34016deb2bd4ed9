import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from core import sharding, trees
from core.checkpoint import pretrained
from core.errors import UserError
from core.optim import optimizer
from core.recipe.parse import parse
from core.recipe.types import Refused
from core.state import TrainState
from core.tasks import contrastive_losses
from core.tasks.contrastive import Contrastive
from core.testing import compilation
from core.testing import params as test_params
from core.training import loop
from core.training.step import make_update

jax.config.update("jax_num_cpu_devices", 2)

TOWER = dict(width=16, depth=1, num_heads=2)
MODEL = dict(
  image=dict(TOWER, patch_size=(8, 8)),
  text=dict(TOWER, vocab_size=50),
  out_dim=(None, 16),
  temperature_init=10.0,
  bias_init=-5.0,
)
LOCKED = [("img/.*", None), (".*", dict(warmup_steps=2))]
TRAINED = [(".*", dict(warmup_steps=2))]
BATCH = 16

quick_compilation = compilation.quick()


def make_recipe(**kw):
  """Two towers of one block each; the image tower's representation is its embedding, as LiT has it."""
  config = dict(
    total_steps=2,
    model_name="two_towers",
    model=MODEL,
    loss="sigmoid",
    optax_name="scale_by_adam",
    lr=1e-2,
    wd=1e-2,
    schedule=LOCKED,
    input=dict(data=dict(name="digits", split="train"), batch_size=BATCH),
  )
  return parse(Contrastive.Recipe, config | kw)


def make_task(**kw):
  return Contrastive(make_recipe(**kw))


def make_batch(size=BATCH, resolution=16, tokens=4):
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (size, resolution, resolution, 3)).astype(np.float32)
  return {"image": images, "labels": rng.integers(0, 50, (size, tokens)).astype(np.int32)}


def shapes_of(task, batch):
  return jax.eval_shape(lambda batch: task.init(jax.random.key(0), batch), batch)


def fresh(task, batch):
  """Values none of which is at rest, but the temperature and the bias, whose values mean something."""
  params = test_params.random_like(shapes_of(task, batch)["params"])
  scalars = {"t": np.log([10.0], dtype=np.float32), "b": np.array([-5.0], np.float32)}
  return {"params": {**params, **{name: value for name, value in scalars.items() if name in params}}}


def loss_in_double_precision(name, zimg, ztxt, t, b):
  """From the papers' equations."""
  logits = t * np.asarray(zimg, np.float64) @ np.asarray(ztxt, np.float64).T
  if name == "softmax":
    return -sum(np.mean(np.diagonal(log_softmax(logits, axis=axis))) for axis in (0, 1)) / 2
  signs = 2 * np.eye(len(logits)) - 1
  return np.sum(np.logaddexp(0, -signs * (logits + b))) / len(logits)


def on_devices(batch):
  """The batch split over all devices, as the loop has it."""
  return jax.device_put(batch, sharding.batch_sharding(sharding.make_mesh()))


def compile_step(recipe, batch):
  """The compiled train step, and the optimizer."""
  task = Contrastive(recipe)
  variables = shapes_of(task, batch)
  tx, _ = optimizer.make(recipe, variables["params"], sched_kw=dict(total_steps=10, batch_size=1, data_size=1))
  state = jax.eval_shape(lambda variables: TrainState.create(variables, tx.init(variables["params"])), variables)
  return jax.jit(make_update(task, tx, seed=0)).lower(state, batch).compile(), tx


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_the_loss_is_that_of_the_models_embeddings(loss):
  model = MODEL if loss == "sigmoid" else MODEL | dict(bias_init=None)
  task, batch = make_task(loss=loss, model=model), make_batch()
  variables = fresh(task, batch)
  zimg, ztxt, out = jax.jit(task.predict["contrastive"])(variables, batch)
  np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, rtol=1e-5)
  value, metrics = jax.jit(task.loss)(variables, batch, jax.random.key(0))
  np.testing.assert_allclose(value, loss_in_double_precision(loss, zimg, ztxt, 10.0, -5.0), rtol=1e-5)
  scalars = {"t": 10, "t/parameter": np.log(10)} | ({"b": -5} if loss == "sigmoid" else {})
  for name, expected in scalars.items():
    np.testing.assert_allclose(metrics[name], expected, rtol=1e-6)
  np.testing.assert_allclose(metrics["txt/norm"], np.mean(out["txt/norm"]), rtol=1e-5)


def test_every_form_of_the_loss_gives_the_gradient_of_the_plain_one_over_several_devices():
  batch, found = on_devices(make_batch()), {}
  for form in contrastive_losses.FORMS:
    task = make_task(loss_form=form, schedule=TRAINED)
    loss = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    value, gradients = loss(fresh(task, batch), batch, jax.random.key(0))
    found[form] = np.concatenate([np.ravel(x) for x in [value[0], *jax.tree.leaves(gradients)]])
  for form in ("chunked", "ring"):
    np.testing.assert_allclose(found[form], found["plain"], rtol=0, atol=1e-5 * np.max(np.abs(found["plain"])))


def test_a_locked_tower_costs_one_forward_pass_and_no_memory_for_a_backward_pass():
  image = dict(width=64, depth=1, num_heads=2, patch_size=(8, 8))
  options = {**MODEL, "image": image, "out_dim": (None, 64)}
  batch = make_batch(size=64, resolution=32, tokens=8)
  # A step without an image tower, its outputs given, is what the text tower and the loss cost.
  without = {"labels": batch["labels"], "zimg": np.zeros((64, 64), np.float32)}
  costs = {}
  for name, schedule, given in [("locked", LOCKED, batch), ("trained", TRAINED, batch), ("without", TRAINED, without)]:
    step, _ = compile_step(make_recipe(model=options, schedule=schedule), on_devices(given))
    costs[name] = step.cost_analysis()["flops"], step.memory_analysis().temp_size_in_bytes
  task = make_task(model=options)
  forward = jax.jit(lambda variables, batch: task.predict["image"](variables, batch)[0])
  forward = forward.lower(shapes_of(task, batch), on_devices(batch)).compile()
  flops, memory = forward.cost_analysis()["flops"], forward.memory_analysis().temp_size_in_bytes

  more = {name: np.subtract(costs[name], costs["without"]) for name in ("locked", "trained")}
  np.testing.assert_allclose(more["locked"][0], flops, rtol=0.02)
  assert more["trained"][0] > 2.5 * flops
  # What the forward pass needs for the time being, and nothing that would be kept for a backward pass.
  assert more["locked"][1] < 1.2 * memory
  assert more["trained"][1] > 3 * memory


def test_a_locked_tower_is_the_same_to_the_last_bit_after_training_and_has_no_optimizer_state():
  batch = make_batch()
  step, tx = compile_step(make_recipe(), batch)
  variables = fresh(make_task(), batch)
  state = first = TrainState.create(variables, jax.jit(tx.init)(variables["params"]))
  for _ in range(5):
    state, metrics = step(state, batch)
  assert np.isfinite(metrics["training_loss"])
  changed = {
    name
    for (name, a), b in zip(trees.flatten_with_names(first.params), jax.tree.leaves(state.params))
    if (a != b).any()
  }
  assert not any(name.startswith("img/") for name in changed)
  assert {"t", "b", "txt/Embed_0/embedding", "txt/head/kernel"} <= changed
  kept = [name for name, _ in trees.flatten_with_names(state.opt_state)]
  assert any("/txt/head/kernel" in name for name in kept)
  assert not any("/img/" in name for name in kept)


def test_a_locked_tower_runs_without_dropout_and_a_trained_one_with():
  options = {**MODEL, "image": {**MODEL["image"], "dropout": 0.5}}
  batch = make_batch()
  for schedule, is_locked in [(LOCKED, True), (TRAINED, False)]:
    task = make_task(model=options, schedule=schedule)
    variables = fresh(task, batch)
    loss = jax.jit(task.loss)
    one, other = (loss(variables, batch, jax.random.key(seed))[0] for seed in (0, 1))
    assert (one == other) == is_locked


def test_embeddings_made_beforehand_train_as_the_images_do():
  batch = make_batch()
  task = make_task()
  variables = fresh(task, batch)
  value_and_grad = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
  (want, _), gradients = value_and_grad(variables, batch, jax.random.key(0))

  outputs = jax.jit(task.predict["image"])(variables, batch)[1]["img/pre_logits"]
  batch = {"zimg": outputs, "labels": batch["labels"]}
  params = {name: variables["params"][name] for name in ("txt", "t", "b")}
  assert fresh(make_task(schedule=TRAINED), batch)["params"].keys() == params.keys()
  (value, _), same = value_and_grad({"params": params}, batch, jax.random.key(0))
  np.testing.assert_allclose(value, want, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(same), jax.tree.leaves({name: gradients["params"][name] for name in params})):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_init_shapes_give_embeddings_made_beforehand_a_model_with_its_image_tower():
  batch = make_batch()
  without = {"zimg": np.zeros((BATCH, 16), np.float32), "labels": batch["labels"]}
  shapes = [(1, 16, 16, 3), (1, 4)]
  assert shapes_of(make_task(init_shapes=shapes), without) == shapes_of(make_task(), batch)
  with pytest.raises(UserError, match=r"config.schedule: batches hold outputs .* it must be frozen"):
    shapes_of(make_task(schedule=TRAINED, init_shapes=shapes), without)


def test_predictions_are_of_one_side_of_both_or_of_what_there_is():
  task, batch = make_task(), make_batch(size=2)
  variables, predict = fresh(task, batch), {name: jax.jit(fn) for name, fn in task.predict.items()}
  zimg, ztxt, out = predict["contrastive"](variables, batch)
  images, texts = {"image": batch["image"]}, {"labels": batch["labels"]}
  np.testing.assert_allclose(predict["image"](variables, images)[0], zimg, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(predict["text"](variables, texts)[0], ztxt, rtol=1e-5, atol=1e-6)
  assert {"t", "b", "img/pre_logits", "txt/pre_logits"} <= out.keys()
  assert predict["predict"](variables, images)[1] is None
  assert predict["predict"](variables, texts)[0] is None
  np.testing.assert_allclose(predict["predict"](variables, batch)[1], ztxt, rtol=1e-5, atol=1e-6)


def test_one_tower_takes_texts_as_images_and_is_trained_by_both_sides():
  options = dict(image=dict(TOWER, patch_size=(8, 8)), out_dim=8)
  task = make_task(model_name="one_tower", model=options, loss="softmax", schedule=TRAINED)
  batch = {"image": make_batch()["image"], "labels": make_batch()["image"][::-1]}
  variables = jax.jit(lambda batch: task.init(jax.random.key(0), batch))(batch)
  assert variables["params"].keys() == {"img", "t"}
  zimg, ztxt, _ = jax.jit(task.predict["contrastive"])(variables, batch)
  np.testing.assert_allclose(zimg, ztxt[::-1], rtol=1e-5, atol=1e-6)
  value, _ = jax.jit(task.loss)(variables, batch, jax.random.key(0))
  np.testing.assert_allclose(value, loss_in_double_precision("softmax", zimg, ztxt, 1.0, 0.0), rtol=1e-5)


def test_each_tower_starts_from_a_file_of_its_own(tmp_path):
  batch = make_batch(size=2)
  donor = fresh(make_task(), batch)["params"]
  pretrained.save_params(tmp_path / "image.npz", donor["img"])
  pretrained.save_params(tmp_path / "all.npz", donor)
  task = make_task(model_init=dict(image=str(tmp_path / "image.npz"), text=f"{tmp_path}/all.npz:txt"))
  first = {**jax.tree.map(np.zeros_like, donor), "t": np.ones(1, np.float32)}
  loaded = task.load({"params": first})["params"]
  jax.tree.map(np.testing.assert_array_equal, loaded, {**donor, "t": first["t"], "b": first["b"]})
  whole = make_task(model_init=str(tmp_path / "all.npz")).load({"params": first})["params"]
  jax.tree.map(np.testing.assert_array_equal, whole, donor)
  assert make_task().load is None


def test_batches_that_lack_something_are_refused():
  task, batch = make_task(), make_batch()
  init = lambda batch: task.init(jax.random.key(0), batch)
  with pytest.raises(UserError, match=r"config.input.pp must leave texts under 'labels'; it leaves: image, label"):
    init({"image": batch["image"], "label": batch["labels"]})
  with pytest.raises(UserError, match=r"must leave images under 'image' \(or their embeddings, 'zimg'\); .* labels"):
    init({"labels": batch["labels"]})
  embedded = {"zimg": np.zeros((BATCH, 8), np.float32), "labels": batch["labels"]}
  variables = fresh(task, batch)
  with pytest.raises(UserError, match=r"16 images of 8 numbers cannot be compared with 16 texts of 16"):
    task.loss(variables, embedded, jax.random.key(0))
  del variables["params"]["img"]
  with pytest.raises(UserError, match=r"config.init_shapes: the model has no image tower"):
    task.predict["image"](variables, batch)
  with pytest.raises(Refused, match=r"the preprocessing must leave texts under 'labels'; it leaves: image"):
    task.predict["text"](variables, {"image": batch["image"]})


def test_tokens_that_the_text_tower_does_not_have_are_refused():
  batch = make_batch()
  task = make_task()
  task.check(batch)
  batch["labels"][3, 2] = 50
  with pytest.raises(UserError, match=r"vocab_size is 50, and the first batch holds the token 50"):
    task.check(batch)


def test_a_tokenizer_of_another_vocabulary_is_refused_before_training(tmp_path):
  pp = 'value_range(-1,1)|tokenize(8, model="digit_captions", inkey="captions")|keep("image", "labels")'
  data = dict(source="digit_captions", split="train")
  recipe = make_recipe(input=dict(data=data, batch_size=BATCH, pp=pp))
  with pytest.raises(UserError, match=r"config.input.pp: its tokenizer has \d+ pieces, .*text.vocab_size is 50"):
    loop.run(Contrastive(recipe), recipe, tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()
