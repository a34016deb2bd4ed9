"""Distillation on CIFAR-10 or CIFAR-100 at their native 32 px: a teacher, and a smaller student with it or alone.

    ./bazelw run //tools:prepare_data -- cifar10
    ./bazelw run //projects/distill:train -- --config=cifar:train=teacher --workdir=runs/cifar_teacher
    ./bazelw run //projects/distill:train -- --config=cifar:teacher=runs/cifar_teacher/params.npz
    ./bazelw run //projects/distill:train -- --config=cifar:train=alone

Arguments: `train` (student: distilled from the teacher; teacher, alone: one or the other by the labels), `teacher` (a
file), `dataset` (cifar10, cifar100), `t` (temperature).

Expected: what was measured, in minutes, is in the project's README.
"""

from core import config as config_lib
from core.errors import UserError

TEACHER = dict(depth=(2, 2, 2), width=0.5)
STUDENT = dict(depth=(1, 1), width=0.5)


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, train="student", teacher="", dataset="cifar10", t=1.0, runlocal=False)
  distilled = config_lib.choose("train", arg.train, {"student": True, "teacher": False, "alone": False})
  if distilled and not (arg.teacher or arg.runlocal):
    raise UserError("config argument teacher is missing: the params.npz of a run with train=teacher")
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_epochs = 200
  config.num_classes = config_lib.choose("dataset", arg.dataset, {"cifar10": 10, "cifar100": 100})

  labels = f"value_range(-1,1)|onehot({config.num_classes},key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name=arg.dataset, split="train[:98%]"),
    batch_size=128,
    shuffle_buffer_size=50_000,
    pp=f"decode|pad(4)|random_crop(32)|flip_lr|{labels}",
  )

  if distilled:
    config.student_name, config.student = "bit", STUDENT
    config.teachers = ["prof"]
    config.prof_name, config.prof = "bit", TEACHER
    config.prof_init = arg.teacher or None
    config.distance = "kl"
    config.distance_kw = dict(t=arg.t)
    config.mixup = dict(p=1.0)
  else:
    config.model_name, config.model = "bit", TEACHER if arg.train == "teacher" else STUDENT
    config.loss = "softmax_xent"
    config.mixup = dict(p=0.2)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 3e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.1)

  def evaluate(split, **kw):
    options = dict(pp_fn=f"decode|{labels}", batch_size=500, log_percent=0.5)
    return dict(data=dict(name=arg.dataset, split=split), **options, **kw)

  config.evals = dict(
    val=evaluate("train[98%:]", type="classification"),
    test=evaluate("test", type="classification"),
  )
  if distilled:
    config.evals.prof = evaluate("test", type="classification", pred="prof") | dict(log_percent=1.0)
    config.evals.agreement = evaluate("test", type="agreement", pred=dict(student="student", teacher="prof"))
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    if distilled:
      config.prof = STUDENT
    config.total_epochs = 1
    config.input.batch_size = 8
    for each in config.evals.values():
      each.batch_size = 8
  return config
