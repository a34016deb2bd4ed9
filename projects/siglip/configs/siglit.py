"""SigLiT: a published image tower, locked, and a text tower from scratch (Zhai et al. 2023, 2303.15343).

    ./bazelw run //projects/siglip:train -- --config=projects/siglip/configs/siglit.py:data=pairs.jsonl
    ./bazelw run //projects/siglip:train -- --config=siglit:data=pairs.jsonl,img=L/16,txt=L

Arguments: `data`, `text`, `several`, `tokenizer`, `token_len`, `tests` (see `generic`), `img` and `init` (the locked
ViT: its variant and weights, AugReg's on ImageNet-21k by default), `txt` (the text tower's variant), `res` (pixels),
`batch_size`, `examples` (in all).

With the tower locked, the text tower is all there is to train, and four chips hold batches of 20,480: no part of the
image tower is differentiated, optimized or kept for the backward pass.

Expected: B/8 of AugReg and text B at batch 32,768: 79.7 % zero-shot on ImageNet after a day on 4 TPUv4; g/14 on JFT-3B,
which is not public, and text L at 20,480: 84.5 % after two days (table 1).
"""

from core import config as config_lib
from core.evaluators import published_evals
from core.pp import tokenizers

VOCAB_SIZES = {"c4_en": 32_000, "cc_all": 32_000, "mc4": 250_000, "gemma": 256_000}
DIMS = {"Ti": 192, "S": 384, "B": 768, "L": 1024, "H": 1280, "g": 1408, "G": 1664}


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg,
    data="laion400m/images",
    text="",
    several=False,
    img="B/8",
    init="",
    txt="B",
    res=224,
    tokenizer="c4_en",
    token_len=16,
    batch_size=32_768,
    examples=900_000_000,
    tests="imagenet2012+imagenet_v2+imagenet2012_real+cifar100+oxford_iiit_pet+coco",
    runlocal=False,
  )
  if arg.runlocal:
    arg.update(res=32, tokenizer="digit_captions", batch_size=8, examples=160, tests="oxford_iiit_pet+coco")
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_examples = arg.examples
  config.loss = "sigmoid"
  config.loss_form = "ring"

  in_file = arg.data.endswith(".jsonl")
  tokens = lambda inkey: f"tokenize({arg.token_len},model='{arg.tokenizer}',eos='sticky',pad_value=1,inkey='{inkey}')"
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

  config.model_name = "two_towers"
  config.model = dict(
    image_model="vit",
    image=dict(variant=arg.img, pool_type="tok"),
    text_model="text_transformer",
    text=dict(variant=arg.txt, vocab_size=VOCAB_SIZES.get(arg.tokenizer) or tokenizers.vocab_size(arg.tokenizer)),
    # The locked tower has no head: what it makes of an image is the embedding.
    out_dim=(None, config_lib.choose("img", arg.img.partition("/")[0], DIMS)),
    temperature_init=10.0,
    bias_init=-10.0,
  )
  config.model_init = dict(image=arg.init or f"howto-i21k-{arg.img}")
  config.model_load = dict(img_load_kw=dict(dont_load=["head/.*"]))

  config.optax_name = "scale_by_adafactor"
  config.optax = dict(beta2_cap=0.95)
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = [("img/.*", None), (".*", dict(decay_type="cosine", warmup_percent=0.1))]

  options = dict(batch_size=1_024, log_percent=0.1)
  config.evals = published_evals.image_text(pp_img, tokens("text"), tests=arg.tests, **options)
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model.image.variant = "mu/16"
    config.model.text.variant = "mu"
    config.model.out_dim = (None, 32)
    del config.model_init
    for each in config.evals.values():
      each.update(batch_size=16, log_percent=0.5)
  return config
