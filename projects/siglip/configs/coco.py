"""SigLiT on COCO's captions, the smallest run with published towers: ViT-B/16, locked, and a text tower from scratch.

    ./bazelw run //tools:prepare_data -- coco_captions imagenet2012
    ./bazelw run //projects/siglip:train -- --config=projects/siglip/configs/coco.py
    ./bazelw run //projects/siglip:train -- --config="coco:init=SigLIP B/16 224"

Arguments: `img` (B/32, B/16, L/16, ...: AugReg's ViT, pre-trained on ImageNet-21k), `init` (instead, the whole of a
published SigLIP of variant `img`, both towers of which are then trained on; `lr=1e-5` would be a rate for that),
`lr`, `res` (pixels), `batch_size`, `tests` (joined by +: coco, retrieval; data sets of zero-shot classification; or
none).

80,000 images teach retrieval on COCO and little of the rest; the paper reports no such run (Zhai et al. 2023,
2303.15343).
"""

from core import config as config_lib
from core.evaluators import published_evals

DIMS = {"Ti": 192, "S": 384, "B": 768, "L": 1024, "So400m": 1152}


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg, img="B/16", init="", lr=1e-3, res=224, batch_size=512, tests="coco+imagenet2012", runlocal=False
  )
  if arg.runlocal:
    arg.update(res=32, batch_size=8, tests="coco+oxford_iiit_pet")
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = 5_000
  config.loss = "sigmoid"

  tokenizer = "digit_captions" if arg.runlocal else "c4_en"
  tokens = f"tokenize({64 if arg.init else 16},model='{tokenizer}',eos='sticky',pad_value=1)"
  pp_img = f"decode|resize({arg.res})"
  config.input = dict(
    data=dict(name="coco_captions", split="train"),
    batch_size=arg.batch_size,
    shuffle_buffer_size=100_000,
    pp=f"{pp_img}|flip_lr|randaug(2,10)|value_range(-1,1)|"
    f"coco_captions|choice(inkey='captions',outkey='text')|{tokens}|keep('image','labels')",
  )

  width = arg.img.partition("/")[0]
  config.model_name = "two_towers"
  config.model = dict(
    image=dict(variant=arg.img, pool_type="map" if arg.init else "tok"),
    text=dict(variant=width, vocab_size=32_000),
    out_dim=(None, config_lib.choose("img", width, DIMS)),
    temperature_init=10.0,
    bias_init=-10.0,
  )
  trained = dict(decay_type="cosine", warmup_percent=0.1)
  if arg.init:
    config.model_init = arg.init
    config.schedule = trained
  else:
    config.model_init = dict(image=f"howto-i21k-{arg.img}")
    config.model_load = dict(img_load_kw=dict(dont_load=["head/.*"]))
    config.schedule = [("img/.*", None), (".*", trained)]

  config.optax_name = "scale_by_adam"
  config.optax = dict(b2=0.95)
  config.grad_clip_norm = 1.0
  config.lr = arg.lr
  config.wd = 0.1 * config.lr

  options = dict(batch_size=512, log_steps=500)
  config.evals = published_evals.image_text(f"{pp_img}|value_range(-1,1)", tokens, tests=arg.tests, **options)
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.total_steps = 20
    config.model.image.variant = "mu/16"
    config.model.text = dict(variant="mu", vocab_size=74)
    config.model.out_dim = (None, 32)
    del config.model_init
    for each in config.evals.values():
      each.batch_size = 16
  return config
