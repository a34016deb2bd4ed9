"""SigLIP from scratch on images and texts of the web, in your files or a TFDS dataset (Zhai et al. 2023, 2303.15343).

    ./bazelw run //projects/siglip:train -- --config=projects/siglip/configs/generic.py:data=pairs.jsonl
    ./bazelw run //projects/siglip:train -- --config=generic:data=webli,text=caption,variant=L/16,res=256

Arguments: `data` (a FILE.jsonl of lines like {"image": "a.jpg", "text": "a cat"}, or a TFDS dataset, one of your own
say; the default is TFDS's LAION-400M, for the paper's WebLI is not public), `text` (the key of an example's text,
`captions/text` within another), `several` (there are several texts an example, of which one is drawn), `variant` (of
the image tower; the text tower is of the same width), `res` (pixels), `tokenizer` and `token_len` (c4_en and 64 are of
the published English models; the paper's studies have 16), `batch_size`, `examples` (in all), `tests` (joined by +:
coco, retrieval; data sets of zero-shot classification; or none).

The rate, the decay of 1e-4, the temperature of 10 and the bias of -10 are the paper's, and so is b2: with more the loss
of large batches spikes. Texts go around a ring of devices (section 3.3): no device holds them all.

Expected: B/16 on WebLI at batch 32,768: 73.4 % zero-shot on ImageNet after 5 days on 32 TPUv4 (table 1); 76.2 % and
recall@1 of 64.5 % and 47.2 % on COCO, image to text and back, of the published model (table 3).
"""

from core import config as config_lib
from core.evaluators import published_evals
from core.pp import tokenizers

VOCAB_SIZES = {"c4_en": 32_000, "cc_all": 32_000, "mc4": 250_000, "gemma": 256_000}
DIMS = {"Ti": 192, "S": 384, "B": 768, "L": 1024, "So400m": 1152, "g-opt": 1536}


def get_config(arg=None):
  arg = config_lib.parse_arg(
    arg,
    data="laion400m/images",
    text="",
    several=False,
    variant="B/16",
    res=224,
    tokenizer="c4_en",
    token_len=64,
    batch_size=32_768,
    examples=9_000_000_000,
    tests="imagenet2012+imagenet_v2+imagenet2012_real+cifar100+oxford_iiit_pet+coco",
    runlocal=False,
  )
  if arg.runlocal:
    arg.update(
      res=32, tokenizer="digit_captions", token_len=16, batch_size=8, examples=160, tests="oxford_iiit_pet+coco"
    )
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

  width = arg.variant.partition("/")[0]
  config.model_name = "two_towers"
  config.model = dict(
    image_model="vit",
    image=dict(variant=arg.variant, pool_type="map"),
    text_model="text_transformer",
    text=dict(variant=width, vocab_size=VOCAB_SIZES.get(arg.tokenizer) or tokenizers.vocab_size(arg.tokenizer)),
    out_dim=(None, config_lib.choose("variant", width, DIMS)),
    temperature_init=10.0,
    bias_init=-10.0,
  )

  config.optax_name = "scale_by_adafactor"
  config.optax = dict(beta2_cap=0.95)
  config.grad_clip_norm = 1.0
  config.lr = 1e-3
  config.wd = 1e-4
  config.schedule = dict(decay_type="cosine", warmup_percent=0.05)

  options = dict(batch_size=1_024, log_percent=0.05)
  config.evals = published_evals.image_text(pp_img, tokens("text"), tests=arg.tests, **options)
  config.log_training_steps = 50
  config.ckpt_steps = 1_000

  if arg.runlocal:
    config.model.image.variant = "mu/16"
    config.model.text.variant = "mu"
    config.model.out_dim = (None, 32)
    for each in config.evals.values():
      each.update(batch_size=16, log_percent=0.5)
  return config
