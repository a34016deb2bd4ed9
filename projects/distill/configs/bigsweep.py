"""BiT-R152x2 into a ResNet-50 (BiT-R50x1) on small datasets, at 128 px (Beyer et al. 2022, 2106.05237).

    ./bazelw run //tools:prepare_data -- oxford_flowers102
    ./bazelw run //projects/distill:train -- --config=projects/distill/configs/bigsweep.py
    ./bazelw run //projects/distill:train -- --config=bigsweep:dataset=sun,lr=0.003,t=2.0 --config.total_epochs=10000

Arguments: `dataset` (flowers, pet, food, sun), `crop` (what student and teacher see alike: ic, a random box; rc, a
random crop of the whole image made a little larger; cc, the middle), and what the paper sweeps: `lr`, `wd`, `t` (the
temperature); how long is `--config.total_epochs`, the more the better.

Expected: the paper shows the outcome of its sweeps in figures. The teachers are the published ones, fine-tuned on each
dataset.
"""

from core import config as config_lib

# The dataset: its TFDS name, splits to train on, to select by and to test on; classes; the teacher's weights; epochs.
DATASETS = {
  "flowers": ("oxford_flowers102", "train", "validation", "test", 102, "BiT-M R152x2 flowers rc128", 10_000),
  "pet": ("oxford_iiit_pet", "train[:90%]", "train[90%:]", "test", 37, "BiT-M R152x2 pet rc128", 1_000),
  "food": ("food101", "train[:90%]", "train[90%:]", "validation", 101, "BiT-M R152x2 food rc128", 100),
  "sun": ("sun397/tfds", "train", "validation", "test", 397, "BiT-M R152x2 sun rc128", 100),
}
CROPS = {"ic": "inception_crop({low})", "rc": "resize({high})|random_crop({low})", "cc": "resize({low})"}


def get_config(arg=None):
  arg = config_lib.parse_arg(arg, dataset="flowers", crop="ic", lr=0.003, wd=1e-4, t=1.0, runlocal=False)
  config = config_lib.ConfigDict()
  name, train, minival, test, classes, teacher, epochs = config_lib.choose("dataset", arg.dataset, DATASETS)
  sizes = dict(low=32, high=40) if arg.runlocal else dict(low=128, high=160)

  config.seed = 0
  config.total_epochs = epochs
  config.num_classes = classes

  labels = f"value_range(-1,1)|onehot({classes},key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name=name, split=train),
    batch_size=512,
    shuffle_buffer_size=50_000,
    pp=f"decode|{config_lib.choose('crop', arg.crop, CROPS).format(**sizes)}|flip_lr|{labels}",
  )

  config.student_name, config.student = "resnet", dict(variant="50x1")
  config.teachers = ["prof"]
  config.prof_name, config.prof = "resnet", dict(variant="152x2")
  config.prof_init = teacher
  config.distance = "kl"
  config.distance_kw = dict(t=arg.t)
  config.mixup = dict(p=1.0)

  config.optax_name = "scale_by_adam"
  config.grad_clip_norm = 1.0
  config.lr = arg.lr
  config.wd = arg.wd
  config.schedule = dict(decay_type="cosine", warmup_percent=0.05)

  def evaluate(split, **kw):
    pp = f"decode|resize({sizes['low']})|{labels}"
    return dict(data=dict(name=name, split=split), pp_fn=pp, batch_size=512, **kw)

  config.evals = dict(
    minival=evaluate(minival, type="classification", pred="student", log_percent=0.01),
    test=evaluate(test, type="classification", pred="student", log_percent=0.01),
    prof=evaluate(test, type="classification", pred="prof", log_percent=1.0),
    agreement=evaluate(minival, type="agreement", pred=dict(student="student", teacher="prof"), log_percent=0.1),
  )
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.total_epochs = 1
    config.student = config.prof = dict(depth=(1, 1), width=0.5)
    config.prof_init = None
    config.input.batch_size = 8
    for each in config.evals.values():
      each.update(batch_size=8, log_percent=0.5)
  return config
