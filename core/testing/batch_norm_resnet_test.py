import jax
import numpy as np
import pytest

from core.testing.batch_norm_resnet import BatchNormResNet
from core.testing.params import random_like

MODEL = BatchNormResNet(num_classes=5, widths=(4, 6), momentum=0.9)


@pytest.fixture(scope="module")
def image():
  return np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(image):
  made = random_like(jax.eval_shape(MODEL.init, jax.random.key(0), image))
  # Variances are not negative.
  made["batch_stats"] = jax.tree.map(np.abs, made["batch_stats"])
  return made


def convolve(x, kernel, stride):
  """Returns a 3x3 convolution by its definition, zeros put around the image."""
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows, columns = x.shape[1:3]
  shifted = [(padded[:, i : i + rows, j : j + columns], kernel[i, j]) for i in range(3) for j in range(3)]
  return sum(pixels[:, ::stride, ::stride] @ weights for pixels, weights in shifted)


def forward(variables, image, train):
  """Returns what the model does, in NumPy: (logits, statistics by name, those of the batch with `train`)."""
  params, found = variables["params"], {}

  def conv(x, name, stride=1):
    y = convolve(x, np.float64(params[name]["kernel"]), stride)
    norm, stats = params[f"{name}_norm"], variables["batch_stats"][f"{name}_norm"]
    mean, var = (y.mean((0, 1, 2)), y.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    found[f"{name}_norm"] = dict(mean=mean, var=var)
    return (y - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]

  def relu(x):
    return np.maximum(x, 0)

  x = relu(conv(np.float64(image), "stem"))
  x = relu(conv(relu(conv(x, "block0_conv0")), "block0_conv1") + x)
  x = relu(conv(relu(conv(x, "block1_conv0", 2)), "block1_conv1") + conv(x, "block1_shortcut", 2))
  return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"], found


def test_evaluation_takes_the_running_averages_and_leaves_them(variables, image):
  (logits, _), changed = MODEL.apply(variables, image, mutable=["batch_stats"])
  np.testing.assert_allclose(logits, forward(variables, image, train=False)[0], atol=2e-4)
  jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])


def test_training_takes_the_statistics_of_the_batch_and_moves_the_averages_by_a_tenth(variables, image):
  (logits, _), changed = MODEL.apply(variables, image, train=True, mutable=["batch_stats"])
  expected, of_batch = forward(variables, image, train=True)
  np.testing.assert_allclose(logits, expected, atol=2e-4)
  moved = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, variables["batch_stats"], of_batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), changed["batch_stats"], moved)


def test_it_starts_with_averages_of_standard_normal_values(image):
  stats = jax.jit(MODEL.init)(jax.random.key(0), image)["batch_stats"]
  for of_layer in stats.values():
    np.testing.assert_array_equal(of_layer["mean"], np.zeros_like(of_layer["mean"]))
    np.testing.assert_array_equal(of_layer["var"], np.ones_like(of_layer["var"]))
