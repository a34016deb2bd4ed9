"""A ViT student on ImageNet-1k, of a larger ViT with other pixels: function matching with DeiT III as the teacher.

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real imagenet_v2
    ./bazelw run //projects/distill:train -- --config=projects/distill/configs/vit_i1k.py
    ./bazelw run //projects/distill:train -- --config=vit_i1k:variant=Ti/16,teacher=deit3_L_224_21k

Arguments: `variant` (the student's), `teacher` (deit3_{S,B,L}_224_{1k,21k}), `t` (temperature), `tests` (val+real+v2;
`tests=val` needs imagenet2012 alone).

Student and teacher see the same crop; the teacher has it normalized as it was trained, under a key of its own. Its
parameters are kept and used in bfloat16.

Expected: not reported by the paper, which has ResNets as students. The teacher alone (the table of DeiT III's code
release): S 81.4 %, B 83.8 %, L 84.9 % for 1k, and S 83.1 %, B 85.7 %, L 87.0 % for 21k.
"""

import re

from core import config as config_lib
from core.errors import UserError
from core.evaluators import published_evals


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, variant="S/16", teacher="deit3_B_224_21k", t=1.0, tests="val+real+v2", runlocal=False)
  match = re.fullmatch(r"deit3_([SBL])_224_(1k|21k)", arg.teacher)
  if not match:
    raise UserError(f"config argument teacher={arg.teacher!r} must be one of deit3_{{S,B,L}}_224_{{1k,21k}}")
  config = config_lib.ConfigDict()
  res = 32 if arg.runlocal else 224

  config.seed = 0
  config.total_epochs = 300
  config.num_classes = 1_000

  labels = "onehot(1000,key='label',key_result='labels')"
  views = "copy('image','prof')|vgg_value_range(key='prof')|value_range(-1,1)"
  both = f"{views}|{labels}|keep('image','prof','labels')"
  config.input = dict(
    data=dict(name="imagenet2012", split="train[:99%]"),
    batch_size=1_024,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop({res})|flip_lr|{both}",
  )

  config.student_name = "vit"
  config.student = dict(variant=arg.variant, pool_type="gap", posemb="sincos2d")
  config.teachers = ["prof"]
  config.prof_name = "vit"
  config.prof = dict(variant=f"{match[1]}/16", pool_type="tok", gelu="exact")
  config.prof_init = arg.teacher
  config.prof_dtype = "bfloat16"
  config.distance = "kl"
  config.distance_kw = dict(t=arg.t)
  config.mixup = dict(p=1.0)

  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_steps=10_000)

  options = dict(batch_size=1_024, log_steps=2_500)
  pp = f"decode|resize_small({res * 8 // 7})|central_crop({res})"
  config.evals = published_evals.imagenet(f"{pp}|value_range(-1,1)", tests=arg.tests, **options)
  # A teacher stays what it is: once is enough.
  pp_teacher = f"decode|resize_small({res},method='bicubic',antialias=True)|central_crop({res})|vgg_value_range"
  prof = published_evals.imagenet(pp_teacher, tests="val", batch_size=1_024, log_percent=1.0)["val"]
  config.evals.prof = dict(pred="prof", **prof)
  data = dict(name="imagenet2012", split="train[99%:]")
  pred = dict(student="student", teacher="prof")
  config.evals.agreement = dict(type="agreement", pred=pred, data=data, pp_fn=f"{pp}|{both}", **options)
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.student = config.prof = dict(variant="mu/16")
    config.prof_init = None
    config.total_epochs = 1
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    for each in config.evals.values():
      each.batch_size = 8
  return config
