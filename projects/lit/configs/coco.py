"""LiT on COCO's captions: a published image tower, locked, and a published BERT (Zhai et al. 2022, 2111.07991).

    ./bazelw run //tools:prepare_data -- coco_captions imagenet2012
    ./bazelw run //projects/lit:train -- --config=projects/lit/configs/coco.py
    ./bazelw run //projects/lit:train -- --config=coco:img=L/16,txt=large

Arguments: `img` (B/32, B/16, L/16, ...: AugReg's ViT, pre-trained on ImageNet-21k), `txt` (BERT, base or large),
`img_head` (a trained linear head on the locked tower; without one, the tower's representation is the embedding),
`res` (pixels), `token_len`, `tests` (joined by +: coco, retrieval; data sets of zero-shot classification; or none),
`embedded` (a file that `//projects/lit:precompute` made of this config: the tower sees each image but once).

The paper trains on far more pairs (see `generic`); 80,000 images teach retrieval on COCO and some of the rest. Weights
of such a run were published as `coco_B16B`, see `published`.
"""

from core import config as config_lib
from core.evaluators import published_evals

DIMS = {"Ti": 192, "S": 384, "B": 768, "L": 1024}


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg,
    img="B/16",
    txt="base",
    img_head=False,
    res=224,
    token_len=16,
    tests="coco+imagenet2012",
    embedded="",
    runlocal=False,
  )
  if arg.runlocal:
    arg.update(res=32, tests="coco+oxford_iiit_pet" if arg.tests == "coco+imagenet2012" else arg.tests)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = 5_000
  config.loss = "softmax"
  config.loss_form = "chunked"

  vocabulary = "digit_words" if arg.runlocal else f"bert_{arg.txt}"
  tokens = f"bert_tokenize({arg.token_len},'{vocabulary}')"
  captions = f"choice(inkey='captions',outkey='text')|{tokens}"
  config.input = dict(
    data=dict(name="coco_captions", split="train"),
    batch_size=4_096,
    shuffle_buffer_size=100_000,
    pp=f"decode|resize({arg.res})|flip_lr|randaug(2,10)|value_range(-1,1)|"
    f"coco_captions|{captions}|keep('image','labels')",
  )
  if arg.embedded:
    config.input.data = dict(source="arrays", path=arg.embedded)
    config.input.pp = f"{captions}|keep('zimg','labels')"
    config.init_shapes = [(1, arg.res, arg.res, 3), (1, arg.token_len)]

  dim = config_lib.choose("img", arg.img.partition("/")[0], DIMS)
  config.model_name = "two_towers"
  config.model = dict(
    image_model="vit",
    image=dict(variant=arg.img, pool_type="tok"),
    text_model="bert",
    text=dict(config=arg.txt),
    out_dim=(dim if arg.img_head else None, dim),
    temperature_init=10.0,
  )
  config.model_init = dict(image=f"howto-i21k-{arg.img}", text=f"bert_{arg.txt}")
  config.model_load = dict(img_load_kw=dict(dont_load=["head/.*"]), txt_load_kw=dict(dont_load=["head/.*"]))

  config.optax_name = "scale_by_adam" if arg.txt == "base" else "scale_by_adafactor"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  trained = dict(decay_type="cosine", warmup_percent=0.03)
  config.schedule = [*([("img/head/.*", trained)] if arg.img_head else []), ("img/.*", None), (".*", trained)]

  pp_img = f"decode|resize({arg.res})|value_range(-1,1)"
  config.evals = published_evals.image_text(pp_img, tokens, tests=arg.tests, batch_size=1_024, log_steps=500)
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.total_steps = 20
    config.input.batch_size = 8
    config.model.image.variant = "mu/16"
    config.model.text = dict(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=110)
    config.model.out_dim = (32 if arg.img_head else None, 32)
    del config.model_init
    for each in config.evals.values():
      each.batch_size = 16
  return config
