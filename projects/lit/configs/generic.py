"""LiT on images and texts of the web, in your files or a TFDS dataset (Zhai et al. 2022, 2111.07991).

    ./bazelw run //projects/lit:train -- --config=projects/lit/configs/generic.py:data=cc12m.jsonl
    ./bazelw run //projects/lit:train -- --config=generic:data=yfcc100m,text=caption,img=L/16,txt=large

Arguments: `data` (a FILE.jsonl of lines like {"image": "a.jpg", "text": "a cat"}, or a TFDS dataset, one of your own
say; the default is TFDS's LAION-400M), `text` (the key of an example's text, `captions/text` within another), `several`
(there are several texts an example, of which one is drawn), `img` and `init` (the locked ViT: its variant and weights;
the paper's best, g/14 on JFT-3B, is not public), `txt` (BERT, base or large), `img_head`, `res`, `token_len`, `tests`
(see `coco`), `batch_size`, `steps`.

Examples without a text, and images that cannot be read, are counted and left out.

Expected: with L/16 of AugReg and BERT large on YFCC100M and CC12M, 75.7 % zero-shot on ImageNet, the paper's result
with public data (weights: `mixed_L16L`, see `published`).
"""

from core import config as config_lib
from core.evaluators import published_evals

DIMS = {"Ti": 192, "S": 384, "B": 768, "L": 1024, "H": 1280, "g": 1408, "G": 1664}


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg,
    data="laion400m/images",
    text="",
    several=False,
    img="B/16",
    init="",
    txt="base",
    img_head=False,
    res=224,
    token_len=16,
    tests="imagenet2012+imagenet_v2+imagenet2012_real+cifar100+oxford_iiit_pet+coco",
    batch_size=16_384,
    steps=60_000,
    runlocal=False,
  )
  if arg.runlocal:
    arg.update(res=32, tests="oxford_iiit_pet+coco", batch_size=8, steps=20)
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = arg.steps
  config.loss = "softmax"
  config.loss_form = "chunked"

  in_file = arg.data.endswith(".jsonl")
  vocabulary = "digit_words" if arg.runlocal else f"bert_{arg.txt}"
  tokens = lambda inkey: f"bert_tokenize({arg.token_len},'{vocabulary}',inkey='{inkey}')"
  key = arg.text or ("text" if in_file else "caption")
  captions = f"choice(inkey='{key}',outkey='text')|{tokens('text')}" if arg.several else tokens(key)
  pp_img = f"decode|resize({arg.res})|value_range(-1,1)"
  config.input = dict(
    data=dict(source="jsonl", path=arg.data) if in_file else dict(name=arg.data, split="train"),
    batch_size=arg.batch_size,
    shuffle_buffer_size=250_000,
    skip_errors=True,
    pp=f"{pp_img}|flatten|{captions}|keep('image','labels')",
  )

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
  config.model_init = dict(image=arg.init or f"howto-i21k-{arg.img}", text=f"bert_{arg.txt}")
  config.model_load = dict(img_load_kw=dict(dont_load=["head/.*"]), txt_load_kw=dict(dont_load=["head/.*"]))

  config.optax_name = "scale_by_adafactor"
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  trained = dict(decay_type="cosine", warmup_percent=0.1)
  config.schedule = [*([("img/head/.*", trained)] if arg.img_head else []), ("img/.*", None), (".*", trained)]

  options = dict(batch_size=1_024, log_steps=5_000)
  config.evals = published_evals.image_text(pp_img, tokens("text"), tests=arg.tests, **options)
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model.image.variant = "mu/16"
    config.model.text = dict(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=110)
    config.model.out_dim = (32 if arg.img_head else None, 32)
    del config.model_init
    for each in config.evals.values():
      each.batch_size = 16
  return config
