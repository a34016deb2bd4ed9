"""The published weights of SigLIP and SigLIP 2, evaluated (Zhai et al. 2023, 2303.15343; Tschannen et al. 2025).

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet_v2 imagenet2012_real coco_captions
    ./bazelw run //tools:evaluate -- --config=projects/siglip/configs/published.py --weights="SigLIP B/16 224"
    ./bazelw run //tools:evaluate -- --config="projects/siglip/configs/published.py:model=SigLIP2 L/16 256" \
      --weights="SigLIP2 L/16 256"
    ./bazelw run //tools:zeroshot -- --config=projects/siglip/configs/published.py --weights="SigLIP B/16 224" \
      cat.jpg --labels=cat,dog

Arguments: `model` (SigLIP B/16 {224,256,384,512}, L/16 {256,384}, So400m/14 {224,384}, B/16-i18n 256; SigLIP2 B/16
{224,256,384,512}, B/32 256, L/16 {256,384,512}, So400m/14 {224,384}, So400m/16 {256,384,512}, g-opt/16 {256,384}),
`tests` (joined by +: coco, retrieval; data sets of zero-shot classification; or none). Trained, it takes one step with
a learning rate of 0 and evaluates what it began with.

Expected of SigLIP (its paper's table 3), ImageNet, COCO image to text and text to image, recall@1: B/16 224 76.2 %,
64.5 %, 47.2 %; L/16 256 80.5 %, 69.6 %, 51.2 %; So400m/14 384 83.2 %, 70.2 %, 52.0 %.
"""

import re

from core import config as config_lib
from core.errors import UserError
from core.evaluators import published_evals

# Of an image tower, the text tower and the size of the embedding.
TOWERS = {"B": ("B", 768), "L": ("L", 1024), "So400m": ("So400m", 1152), "g-opt": ("So400m", 1536)}


def get_config(arg=None):
  tests = "imagenet2012+imagenet_v2+imagenet2012_real+cifar100+oxford_iiit_pet+coco"
  arg = config_lib.parse_arg(arg, model="SigLIP B/16 224", tests=tests, runlocal=False)
  match = re.fullmatch(r"(SigLIP2?) ((B|L|So400m|g-opt)/\d+)(-i18n)? (\d+)", arg.model)
  if not match:
    raise UserError(f"config argument model={arg.model!r} must be a name like 'SigLIP B/16 224', 'SigLIP2 L/16 256'")
  family, variant, width, multilingual = match.groups()[:4]
  res = 32 if arg.runlocal else int(match[5])
  if arg.runlocal:
    arg.tests = "oxford_iiit_pet+coco"
  txt, dim = TOWERS[width]
  length = 16 if arg.model == "SigLIP So400m/14 224" else 64
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = 1
  config.loss = "sigmoid"

  if family == "SigLIP2":
    tokenizer, vocab_size, pad = "gemma", 256_000, 0
  else:
    tokenizer, vocab_size, pad = ("mc4", 250_000, 1) if multilingual else ("c4_en", 32_000, 1)
  tokenizer = "digit_captions" if arg.runlocal else tokenizer
  tokens = lambda inkey: f"tokenize({length},model='{tokenizer}',eos='sticky',pad_value={pad},inkey='{inkey}')"

  config.model_name = "two_towers"
  config.model = dict(
    image=dict(variant=variant, pool_type="map"),
    text=dict(variant=txt, vocab_size=vocab_size),
    out_dim=(None, dim),
    temperature_init=10.0,
    bias_init=-10.0,
  )
  config.model_init = arg.model

  pp_img = f"decode|resize({res})|value_range(-1,1)"
  config.evals = published_evals.image_text(pp_img, tokens("text"), tests=arg.tests, batch_size=256)

  # What is left is not for training: the loop wants an input, and an optimizer that changes nothing.
  config.input = dict(
    data=dict(name="coco_captions", split="test"),
    batch_size=8,
    shuffle_buffer_size=8,
    pp=f"{pp_img}|coco_captions|get_single('captions')|{tokens('captions')}|keep('image','labels')",
  )
  config.optax_name = "identity"
  config.lr = 0.0

  if arg.runlocal:
    config.model.image.variant = "mu/16"
    config.model.text = dict(variant="mu", vocab_size=74)
    config.model.out_dim = (None, 32)
    del config.model_init
    config.total_steps = 20
    for each in config.evals.values():
      each.batch_size = 16
  return config
