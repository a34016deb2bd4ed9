"""Transfer of published ViT and BiT weights to smaller datasets: the settings of the published sweep.

    ./bazelw run //tools:prepare_data -- cifar100
    ./bazelw run //projects/vit:train -- --config=projects/vit/configs/transfer.py:dataset=cifar100
    ./bazelw run //projects/vit:train -- --config=transfer:model=bit-m-r50x1,dataset=cifar100,crop=resmall_crop,lr=0.003

Arguments: `model` (vit-i21k-augreg-b/32, vit-i21k-augreg-l/16, vit-s16, bit-m-r50x1), `dataset` (cifar10, cifar100,
imagenet2012, oxford_iiit_pet, oxford_flowers102), `crop` (inception_crop: a random box; resmall_crop: the shorter side
resized, then a random crop; resize_crop: both sides resized, then a random crop), `h_res` and `l_res` (pixels before
and after the crop), `lr` (the sweep: 0.03, 0.01, 0.003, 0.001), `init` (other weights of that model), `tests` (of
imagenet2012: val+real+v2). Without `crop` and `lr` they are those that were best for the dataset with B/32.

Expected, of vit-i21k-augreg-b/32 with that crop and rate, selected on `minival`, the mean of five published runs:
cifar10 98.55 %, cifar100 91.35 %, imagenet2012 83.27 %, oxford_iiit_pet 93.78 %, oxford_flowers102 99.43 %. 10,000
steps at 384 px cost 4.0e17 FLOPs: half an hour on a TPU v3-8 at half its peak.
"""

from core import config as config_lib
from core.evaluators import published_evals

# The model's name here: its family, options, and published weights.
MODELS = {
  "vit-i21k-augreg-b/32": ("vit", dict(variant="B/32", pool_type="tok"), "howto-i21k-B/32"),
  "vit-i21k-augreg-l/16": ("vit", dict(variant="L/16", pool_type="tok"), "howto-i21k-L/16"),
  "vit-s16": ("vit", dict(variant="S/16", pool_type="gap", posemb="sincos2d", rep_size=True), "i1k-s16-300ep"),
  "bit-m-r50x1": ("resnet", dict(variant="50x1"), "BiT-M-R50x1"),
}

# The dataset: splits to train on, to select by and to test on; classes; steps and warm-up; the best crop and rate.
DATASETS = {
  "cifar10": ("train[:98%]", "train[98%:]", "test", 10, 10_000, 500, "resmall_crop", 0.003),
  "cifar100": ("train[:98%]", "train[98%:]", "test", 100, 10_000, 500, "resmall_crop", 0.01),
  "imagenet2012": ("train[:99%]", "train[99%:]", "validation", 1_000, 20_000, 500, "inception_crop", 0.03),
  "oxford_iiit_pet": ("train[:90%]", "train[90%:]", "test", 37, 500, 100, "inception_crop", 0.003),
  "oxford_flowers102": ("train[:90%]", "train[90%:]", "test", 102, 500, 100, "inception_crop", 0.003),
}

# What is done to an image to train and to evaluate; `high` and `low` are the pixels before and after the crop.
CROPS = {
  "inception_crop": ("inception_crop({low})", "resize({low})"),
  "resmall_crop": ("resize_small({high})|random_crop({low})", "resize_small({high})|central_crop({low})"),
  "resize_crop": ("resize({high})|random_crop({low})", "resize({high})|central_crop({low})"),
}


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg,
    model="vit-i21k-augreg-b/32",
    dataset="cifar10",
    crop="",
    h_res=448,
    l_res=384,
    lr=0.0,
    init="",
    tests="val+real+v2",
    runlocal=False,
  )
  config = config_lib.ConfigDict()
  dataset = config_lib.choose("dataset", arg.dataset, DATASETS)
  train, minival, test, classes, steps, warmup, best_crop, best_lr = dataset

  config.seed = 0
  config.total_steps = steps
  config.num_classes = classes
  config.loss = "softmax_xent"

  high, low = (48, 32) if arg.runlocal else (arg.h_res, arg.l_res)
  crops = config_lib.choose("crop", arg.crop or best_crop, CROPS)
  crop_train, crop_eval = (each.format(high=high, low=low) for each in crops)
  labels = f"onehot({classes},key='label',key_result='labels')|keep('image','labels')"
  config.input = dict(
    data=dict(name=arg.dataset, split=train),
    batch_size=512,
    shuffle_buffer_size=50_000,
    pp=f"decode|{crop_train}|flip_lr|value_range(-1,1)|{labels}",
  )

  config.model_name, model, weights = config_lib.choose("model", arg.model, MODELS)
  config.model = model
  config.model_init = arg.init or weights
  config.model_load = dict(dont_load=["head/.*"])

  config.optax_name = "momentum_hp"
  config.grad_clip_norm = 1.0
  config.lr = arg.lr or best_lr
  config.schedule = dict(decay_type="cosine", warmup_steps=warmup)

  pp = f"decode|{crop_eval}|value_range(-1,1)"
  options = dict(batch_size=512, log_steps=max(100, steps // 10))

  def evaluate(split):
    data = dict(name=arg.dataset, split=split)
    return dict(type="classification", data=data, pp_fn=f"{pp}|{labels}", **options)

  config.evals = dict(minival=evaluate(minival))
  if arg.dataset == "imagenet2012":
    config.evals.update(published_evals.imagenet(pp, tests=arg.tests, **options))
  else:
    config.evals.test = evaluate(test)
  config.log_training_steps = 10
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model.variant = "mu/16" if config.model_name == "vit" else "26x1"
    del config.model_init
    config.total_steps = 20
    config.input.batch_size = 8
    config.schedule.warmup_steps = 2
    for each in config.evals.values():
      each.batch_size = 8
  return config
