"""Small configs of big_vision's, for the tests of their port."""

from typing import Any

PP = "decode|resize(8)|value_range(-1,1)|onehot(3)|keep('image','labels')"


def classifier(**changes: Any) -> dict[str, Any]:
  """Returns a small config of big_vision's, with entries changed; None leaves one out."""
  config = dict(
    model_name="vit",
    model=dict(variant="S/16"),
    num_classes=3,
    loss="softmax_xent",
    input=dict(data=dict(name="cifar10", split="train"), batch_size=8, shuffle_buffer_size=50, pp=PP),
    optax_name="scale_by_adam",
    lr=0.1,
    total_steps=10,
    log_training_steps=5,
    ckpt_steps=5,
  )
  return {key: value for key, value in {**config, **changes}.items() if value is not None}


def evaluation(**changes: Any) -> dict[str, Any]:
  """Returns a config with the one evaluation `val`."""
  val = dict(type="classification", data=dict(name="cifar10", split="test"), pp_fn=PP, loss_name="softmax_xent")
  return classifier(evals=dict(val={**val, "log_steps": 5, **changes}))
