"""BiT-R152x2 into a ResNet-50 (BiT-R50x1) on ImageNet-1k, by function matching (Beyer et al. 2022, 2106.05237).

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet2012_real imagenet_v2
    ./bazelw run //projects/distill:train -- --config=projects/distill/configs/bit_i1k.py
    ./bazelw run //projects/distill:train -- --config=bit_i1k:teachers=ic224+rc384 --config.total_epochs=9600

Arguments: `res` (pixels of the student's images), `teachers` (joined by +: ic224, rc384, which see the student's crop
at 224 and at 384 px), `variant` (the student's depth x width), `t` (temperature), `tests` (val+real+v2; `tests=val`
needs imagenet2012 alone).

Expected (reported by the paper, with 9,600 epochs): 82.8 % at 224 px, of both teachers, and 80.5 % at 160 px; weights
of such students are in the catalog, FunMatch-224px-i1k82.8 and FunMatch-160px-i1k80.5. A run of 300 epochs shows
whether all goes well, 1,200 are a middle way.
"""

from core import config as config_lib
from core.evaluators import published_evals

# The published weights of a teacher, and the pixels that it sees the crop with.
TEACHERS = {
  "ic224": ("BiT-M R152x2 imagenet2012 ic224", 224),
  "rc384": ("BiT-M R152x2 imagenet2012 rc384", 384),
}


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, res=224, teachers="ic224", variant="50x1", t=1.0, tests="val+real+v2", runlocal=False)
  config = config_lib.ConfigDict()
  chosen = {name: config_lib.choose("teachers", name, TEACHERS) for name in arg.teachers.split("+")}
  pixels = {"image": arg.res} | {f"prof_{name}": size for name, (_, size) in chosen.items()}
  if arg.runlocal:
    pixels = {key: size // 8 for key, size in pixels.items()}

  config.seed = 0
  config.total_epochs = 1_200
  config.num_classes = 1_000

  # One crop, as large as the largest that a model sees; the others see it resized.
  crop = max(pixels.values())
  own = [key for key, size in pixels.items() if key != "image" and size != pixels["image"]]
  views = "".join(f"copy('image','{key}')|resize({pixels[key]},key='{key}')|" for key in own)
  views += f"resize({pixels['image']})|" if own else ""
  views += "|".join(f"value_range(-1,1,key='{key}')" for key in ("image", *own))
  labels = "onehot(1000,key='label',key_result='labels')"
  pp = f"decode|resize_small({crop * 8 // 7})|central_crop({crop})"
  keep = ",".join(f"'{key}'" for key in ("image", "labels", *own))
  config.input = dict(
    data=dict(name="imagenet2012", split="train[:99%]"),
    batch_size=4_096,
    shuffle_buffer_size=250_000,
    pp=f"decode_jpeg_and_inception_crop({crop})|flip_lr|{views}|{labels}|keep({keep})",
  )

  config.student_name = "resnet"
  config.student = dict(variant=arg.variant)
  config.teachers = [f"prof_{name}" for name in chosen]
  for name, (weights, _) in chosen.items():
    config[f"prof_{name}_name"] = "resnet"
    config[f"prof_{name}"] = dict(variant="152x2")
    config[f"prof_{name}_init"] = weights
  config.distance = "kl"
  config.distance_kw = dict(t=arg.t)
  config.mixup = dict(p=1.0)

  config.optax_name = "scale_by_adam"
  config.optax = dict(mu_dtype="bfloat16")
  config.grad_clip_norm = 1.0
  config.lr = 0.03
  config.wd = 3e-4
  config.schedule = dict(decay_type="cosine", warmup_steps=5_000)

  options = dict(batch_size=4_096, log_steps=1_000)
  minival = dict(data=dict(name="imagenet2012", split="train[99%:]"), **options)
  seen = lambda key: f"{pp}|resize({pixels[key]})|value_range(-1,1)"
  config.evals = dict(
    minival=dict(type="classification", pp_fn=f"{seen('image')}|{labels}|keep('image','labels')", **minival),
    **published_evals.imagenet(seen("image"), tests=arg.tests, **options),
  )
  for prof in config.teachers:
    # A teacher stays what it is: once is enough.
    config.evals[prof] = published_evals.imagenet(seen(prof), tests="val", batch_size=4_096, log_percent=1.0)["val"]
    config.evals[prof].pred = prof
    config.evals[f"agreement_{prof}"] = dict(
      type="agreement",
      pred=dict(student="student", teacher=prof),
      pp_fn=f"{pp}|{views}|{labels}|keep({keep})",
      **minival,
    )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.student = dict(depth=(1, 1), width=0.5)
    config.total_epochs = 1
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    for prof in config.teachers:
      config[prof] = dict(depth=(1, 1), width=0.5)
      config[f"{prof}_init"] = None
    for each in config.evals.values():
      each.batch_size = 8
  return config
