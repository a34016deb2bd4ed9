"""The published weights of LiT, evaluated (Zhai et al. 2022, 2111.07991).

    ./bazelw run //tools:prepare_data -- imagenet2012 imagenet_v2 imagenet2012_real coco_captions
    ./bazelw run //tools:evaluate -- --config=projects/lit/configs/published.py --weights=mixed_B16B_2
    ./bazelw run //tools:evaluate -- --config=projects/lit/configs/published.py:model=mixed_L16L --weights=mixed_L16L
    ./bazelw run //tools:zeroshot -- --config=projects/lit/configs/published.py --weights=mixed_B16B_2 cat.jpg \
      --labels=cat,dog

Arguments: `model` (mixed_B16B, mixed_B16B_2, mixed_L16L: trained on YFCC100M and CC12M; coco_B16B: on COCO), `img_head`
(yes or no: whether the image tower has a head; the loader says so where the file is otherwise), `res`, `tests` (see
`coco`). Trained, it takes one step with a learning rate of 0 and evaluates what it began with.

Expected: 75.7 % on ImageNet with mixed_L16L.
"""

from core import config as config_lib
from core.evaluators import published_evals

# The image tower, BERT, the size of the embedding, and whether there is a head on the image tower.
MODELS = {
  "mixed_B16B": ("B/16", "base", 768, True),
  "mixed_B16B_2": ("B/16", "base", 768, True),
  "mixed_L16L": ("L/16", "large", 1024, False),
  "coco_B16B": ("B/16", "base", 768, False),
}
TOKENS = 16


def get_config(arg=None):
  tests = "imagenet2012+imagenet_v2+imagenet2012_real+cifar100+oxford_iiit_pet+coco"
  arg = config_lib.parse_arg(arg, model="mixed_B16B_2", img_head="", res=224, tests=tests, runlocal=False)
  if arg.runlocal:
    arg.update(res=32, tests="oxford_iiit_pet+coco")
  img, txt, dim, head = config_lib.choose("model", arg.model, MODELS)
  head = config_lib.choose("img_head", arg.img_head, {"": head, "yes": True, "no": False})
  config = config_lib.ConfigDict()

  config.seed = 0
  config.total_steps = 1
  config.loss = "softmax"

  config.model_name = "two_towers"
  config.model = dict(
    image=dict(variant=img, pool_type="tok"),
    text_model="bert",
    text=dict(config=txt),
    out_dim=(dim if head else None, dim),
  )
  config.model_init = arg.model

  pp_img = f"decode|resize({arg.res})|value_range(-1,1)"
  vocabulary = "digit_words" if arg.runlocal else f"bert_{txt}"
  tokens = f"bert_tokenize({TOKENS},'{vocabulary}')"
  config.evals = published_evals.image_text(pp_img, tokens, tests=arg.tests, batch_size=256)

  # What is left is not for training: the loop wants an input, and an optimizer that changes nothing.
  config.input = dict(
    data=dict(name="coco_captions", split="test"),
    batch_size=8,
    shuffle_buffer_size=8,
    pp=f"{pp_img}|coco_captions|get_single('captions')|{tokens[:-1]},inkey='captions')|keep('image','labels')",
  )
  config.optax_name = "identity"
  config.lr = 0.0

  if arg.runlocal:
    config.model.image.variant = "mu/16"
    config.model.text = dict(width=16, depth=1, mlp_dim=32, num_heads=2, vocab_size=110)
    config.model.out_dim = (32 if head else None, 32)
    del config.model_init
    config.total_steps = 20
    for each in config.evals.values():
      each.batch_size = 16
  return config
