"""Distillation on scikit-learn's 8x8 digits: a student at a tenth of its teacher's arithmetic, nothing to download.

    ./bazelw run //projects/distill:train
    ./bazelw run //projects/distill:train -- --config=digits:alone

Arguments: `alone` (the same student by the labels, as long and on the same crops, to compare with), `share` of the
training digits that the student sees, `teacher` (another teacher of that size, a file), `distance` (kl, euclidean,
hard), `t` (temperature of kl).

The teacher is the project's own, trained by `digits_teacher` on all of them and shipped: 98.6 % of the test's digits.
The student has larger patches, a quarter as many, and 431 digits: what more there is to know the teacher tells it.

Expected: at least 97 % test accuracy in two minutes. What else was measured is in the project's README.
"""

from core import config as config_lib
from core import data_files
from projects.distill.configs.digits_teacher import TEACHER

WEIGHTS = data_files.find("projects/distill/teachers/digits.npz")


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, alone=False, share="30%", teacher=str(WEIGHTS), distance="kl", t=1.0, runlocal=False)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = 60 if arg.runlocal else 4_491
  config.num_classes = 10

  labels = "value_range(-1,1)|onehot(10,key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name="digits", split=f"train[:{arg.share}]"),
    batch_size=64,
    pp=f"pad(1)|random_crop(8)|{labels}",
  )

  student = dict(width=48, depth=2, mlp_dim=192, num_heads=4, patch_size=(4, 4), pool_type="gap")
  if arg.runlocal:
    student.update(width=16, depth=1, mlp_dim=32, num_heads=2)
  if arg.alone:
    config.model_name, config.model = "vit", student
    config.loss = "softmax_xent"
    config.mixup = dict(p=0.2)
  else:
    config.student_name, config.student = "vit", student
    config.teachers = ["prof"]
    config.prof_name, config.prof = "vit", TEACHER
    config.prof_init = arg.teacher
    config.distance = arg.distance
    config.distance_kw = dict(t=arg.t) if arg.distance == "kl" else {}
    config.mixup = dict(p=1.0)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = 1e-2
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.05)

  options = dict(data=dict(name="digits", split="test"), pp_fn=labels, batch_size=360, log_percent=0.1)
  config.evals = dict(test=dict(type="classification", pred="predict", **options))
  if not arg.alone:
    config.evals.prof = dict(type="classification", pred="prof", **options)
    config.evals.agreement = dict(type="agreement", pred=dict(student="student", teacher="prof"), **options)
  config.log_training_steps = 50
  config.ckpt_steps = 1_000
  return config
